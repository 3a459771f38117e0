import json
import re
from statistics import geometric_mean

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
        '2,64,91,91',
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
    times = {(row['shape'][-1], row['norm']): row['forward + backward'] for row in found['rows']}
    for kind, sizes in dict(large=[91], small=[8, 5]).items():
        over_bn = geometric_mean(times[size, 'SN'] / times[size, 'nn.BatchNorm2d'] for size in sizes)
        assert found[kind]['SN']['forward + backward'] == pytest.approx(over_bn)
        assert re.search(rf'^{kind} shapes, forward \+ backward, .*\bSN {over_bn:.2f}\b', done.stdout, re.MULTILINE)


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


def test_group_norm_is_timed_by_its_name(tmp_path):
    arguments = ['--norms', 'GN', '--shapes', '1,48,2,2', '--rounds', '1', '--out', str(tmp_path)]
    assert run_command('benchmark', [*arguments, '--threads', str(torch.get_num_threads())]) == 0
    assert any(row['norm'] == 'GN' for row in json.loads((tmp_path / 'benchmark.json').read_text())['rows'])
