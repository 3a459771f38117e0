import json

import pytest
import torch

from mmnorm.cli import benchmark, run_command


def test_times_layers_and_writes_json_and_a_chart(forked_tool, tmp_path):
    done = forked_tool(
        'benchmark_norms.py',
        '--norms',
        'SN',
        'EN',
        'GW',
        '--shapes',
        '2,32,8,8',
        '4,64,5,5',
        '--rounds',
        '2',
        '--threads',
        '1',
    )
    assert done.returncode == 0, done.stdout
    folder = tmp_path / 'work_dirs/benchmark_norms'
    found = json.loads((folder / 'benchmark.json').read_text())
    assert {row['norm'] for row in found['rows']} == {
        'nn.BatchNorm2d',
        'nn.GroupNorm',
        'copy',
        'SN',
        'EN',
        'EN (online)',
        'GW',
    }
    assert all(row[what] > 0 for row in found['rows'] for what in ('forward', 'forward + backward', 'evaluation'))
    assert found['ratios']['nn.BatchNorm2d']['forward + backward'] == 1
    assert found['ratios']['GW']['forward'] > found['ratios']['copy']['forward']
    assert found['threads'] == 1 and found['seed'] == 0 and found['torch']
    assert (folder / 'benchmark.png').stat().st_size > 10_000
    for line in ('(2, 32, 8, 8) float32, ms', '(4, 64, 5, 5) float32, ms', 'Geometric mean over shapes'):
        assert line in done.stdout


@pytest.mark.e2e
@pytest.mark.parametrize('rois', [16, pytest.param(512, marks=pytest.mark.slow)])
def test_times_a_training_step_of_a_detector(rois, tmp_path, monkeypatch):
    """With as many RoIs of an image as trainings have, and with fewer."""
    build = benchmark.detector

    def detector(norm_cfg):
        model = build(norm_cfg)
        assert model.roi_head.bbox_sampler.num == 512
        model.roi_head.bbox_sampler.num = rois
        return model

    monkeypatch.setattr(benchmark, 'detector', detector)
    arguments = ['--model', '--norms', 'SN', '--image-size', '64', '--rounds', '1']
    assert (
        run_command('benchmark', [*arguments, '--out', str(tmp_path), '--threads', str(torch.get_num_threads())]) == 0
    )
    rows = json.loads((tmp_path / 'benchmark_model.json').read_text())['rows']
    assert [row['norm'] for row in rows] == ['BN', 'SN']
    assert rows[0]['ratio'] == rows[0]['peak_ratio'] == 1 and rows[1]['milliseconds'] > 0 and rows[1]['peak_mib'] > 100


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            '--norms NoNorm',
            'error: --norms NoNorm: no norm is registered by this name; those of mmnorm are Fro',
        ),
        ('--norms ReLU', 'error: --norms ReLU: '),
        ('--norms PerLevel', 'error: --norms PerLevel: it cannot be built by its name alone ('),
        ('--device cuda', 'error: --device cuda: PyTorch cannot compute on it here ('),
        ('--device cuda:99', 'error: --device cuda:99: PyTorch cannot compute on it here ('),
        ('--device zz', 'error: --device zz: PyTorch cannot compute on it here (Expected one of cpu, cuda'),
        ('--device meta', 'error: --device meta: PyTorch cannot compute on it here ('),
        ('--shapes 2,x', "'2,x' is not a shape; use N,C,H,W, such as 2,64,200,200"),
        ('--shapes 2', "'2' is not a shape"),
        ('--shapes 2,0,4,4', "'2,0,4,4' is not a shape"),
        ('--rounds 0', 'argument --rounds: must be 1 or more, got 0'),
        ('--rounds -3', 'argument --rounds: must be 1 or more, got -3'),
        ('--rounds 1.5', 'argument --rounds: must be 1 or more, got 1.5'),
        ('--threads 0', 'argument --threads: must be 1 or more, got 0'),
        ('--threads x', 'argument --threads: must be 1 or more, got x'),
        ('--image-size 0 --model', 'argument --image-size: must be 1 or more, got 0'),
        ('--out a_file', 'error: a_file is a file, not a folder'),
        ('--out a_file/below', 'a_file is a file, not a folder'),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    if message.startswith('error: --device cuda:') and 'cuda:99' not in message and torch.cuda.is_available():
        pytest.skip('there is a GPU')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a_file').touch()
    try:
        status = run_command('benchmark', arguments.split())
    except SystemExit as end:  # of argparse
        status = end.code
    said = capsys.readouterr().err.strip()
    assert status == 2 and message in said.splitlines()[-1], said
    assert said.startswith('usage: ') or '\n' not in said
    assert [path.name for path in tmp_path.iterdir()] == ['a_file']


def test_group_norm_is_timed_by_its_name(tmp_path):
    arguments = ['--norms', 'GN', '--shapes', '1,48,2,2', '--rounds', '1', '--out', str(tmp_path)]
    assert run_command('benchmark', [*arguments, '--threads', str(torch.get_num_threads())]) == 0
    assert any(row['norm'] == 'GN' for row in json.loads((tmp_path / 'benchmark.json').read_text())['rows'])
