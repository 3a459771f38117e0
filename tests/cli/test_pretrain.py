"""One chain in short: a classifier is trained, its backbone published, and a detector fine-tuned from it."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from mmnorm.cli import launch, main
from mmnorm.data import CLASSIFICATION, DigitsOptions, make_digits
from mmnorm.engine import read_checkpoint
from tests.processes import command, environment

pytest.importorskip('mmpretrain', reason='pretraining needs mmpretrain')

ROW = 'mask_rcnn_xbn_r50_digits_pretrained'
WEIGHTS = 'pretrained/resnet50_xbn_digits.pth'


@pytest.fixture
def options(tmp_path_factory):
    """Of a pretraining on next to nothing."""
    root = tmp_path_factory.mktemp('classes')
    make_digits(root, DigitsOptions(**CLASSIFICATION | dict(num_train=20, num_val=10)))
    values = {f'{split}_dataloader.dataset.data_root': root for split in ('train', 'val', 'test')}
    values |= {'train_cfg.max_epochs': 1, 'train_dataloader.batch_size': 10}
    return ['--cfg-options', *(f'{key}={value}' for key, value in values.items())]


@pytest.mark.e2e
def test_chain(options, digits_config, forked_training, forked_tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = digits_config('train_cfg = dict(max_epochs=1, val_interval=2)', base=ROW)
    before = forked_tool('train.py', config)
    assert before.returncode and 'are missing' in before.stdout and f'pretrain {ROW}' in before.stdout
    assert main(['pretrain', str(config), *options]) == 0, capsys.readouterr().out
    told = capsys.readouterr().out
    assert f'resnet50_xbn_digits makes {WEIGHTS}, which {ROW} starts from' in told
    assert 'outside the backbone (head.fc.weight, head.fc.bias)' in told and 'key by key' in told
    published = torch.load(tmp_path / WEIGHTS, weights_only=True)['state_dict']
    trained = read_checkpoint(tmp_path / 'work_dirs/resnet50_xbn_digits/epoch_1.pth')['state_dict']
    assert published.keys() == {key.removeprefix('backbone.') for key in trained if key.startswith('backbone.')}
    assert all(torch.equal(value, trained[f'backbone.{key}']) for key, value in published.items())

    done = forked_tool('train.py', config)
    assert done.returncode == 0, done.stdout[-3000:]
    assert 'unexpected key' not in done.stdout and 'missing keys' not in done.stdout
    tuned = read_checkpoint(tmp_path / 'work_dirs/project/epoch_1.pth')['state_dict']
    assert {key.removeprefix('backbone.') for key in tuned if key.startswith('backbone.')} == published.keys()
    same = {key for key, value in published.items() if torch.equal(value, tuned[f'backbone.{key}'])}
    norms = {key for key in published if '.bn' in key or key.startswith('bn') or 'downsample.1' in key}
    placed = {key for key in norms if key.rpartition('.')[0].endswith('bn2')}
    assert norms - placed <= same  # frozen BNs
    assert not same & {key for key in placed if not key.startswith('layer1')}  # the batch-free norms train
    assert {key for key in same if 'conv' in key} == {
        key for key in published if key.startswith(('conv1', 'layer1')) and 'conv' in key
    }
    capsys.readouterr()
    assert main(['pretrain', str(config), *options]) == 2
    assert f'{WEIGHTS} exists already and is not overwritten' in capsys.readouterr().err


def test_an_interrupted_pretraining_publishes_nothing_and_goes_on(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = []

    def interrupt(command, env):
        commands.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(launch.subprocess, 'run', interrupt)
    assert main(['pretrain', ROW, *options]) == 130
    assert 'interrupted: the same command continues' in capsys.readouterr().err
    monkeypatch.setattr(launch.subprocess, 'run', lambda command, env: SimpleNamespace(returncode=1))
    assert main(['pretrain', ROW, *options, '--processes', '2']) == 1
    assert 'nothing is published; the same command continues' in capsys.readouterr().err
    assert not any(tmp_path.iterdir()) and '--resume' in commands[0] and '--work-dir' in commands[0]


@pytest.mark.e2e
def test_a_killed_pretraining_leaves_nothing_behind_and_goes_on(
    options, forked_training, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    more = ['train_cfg.max_epochs=10', 'train_cfg.val_interval=10', 'default_hooks.checkpoint.max_keep_ckpts=10']
    arguments = [ROW, *(option for option in options if 'max_epochs' not in option), *more]
    work_dir = tmp_path / 'work_dirs/resnet50_xbn_digits'
    with open('log', 'w') as log:
        process = psutil.Popen(command('pretrain.py', *arguments), env=environment(), stdout=log, stderr=log)
    while not (work_dir / 'epoch_1.pth').exists():
        assert process.poll() is None, Path('log').read_text()[-3000:]
        time.sleep(0.02)
    everyone = [process, *process.children(recursive=True)]
    process.kill()
    _, alive = psutil.wait_procs(everyone, timeout=60)
    assert not alive and len(everyone) > 1
    assert not (work_dir / 'epoch_10.pth').exists() and not Path('pretrained').exists()
    newest = max(int(path.stem.removeprefix('epoch_')) for path in work_dir.glob('epoch_*.pth'))

    assert main(['pretrain', *arguments]) == 0, capsys.readouterr().out[-3000:]
    assert f'resumed epoch: {newest}' in capsys.readouterr().out
    published = torch.load(WEIGHTS, weights_only=True)
    assert published['meta']['epoch'] == 10
    trained = read_checkpoint(work_dir / 'epoch_10.pth')['state_dict']
    assert all(torch.equal(value, trained[f'backbone.{key}']) for key, value in published['state_dict'].items())
    assert [path.name for path in Path('pretrained').iterdir()] == [Path(WEIGHTS).name]


def test_show_draws_the_chain(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def chain():
        assert main(['zoo', 'show', ROW]) == 0
        return json.loads(capsys.readouterr().out)[0]['chain']

    steps = chain()
    assert [step.split()[2] for step in steps] == ['pretrain', 'publish', 'fine-tune', 'evaluate', 'report']
    assert all(step.startswith('[ ] ') for step in steps) and f'pretrain {ROW}' in steps[0]
    (tmp_path / 'pretrained').mkdir()
    (tmp_path / WEIGHTS).touch()
    work_dir = tmp_path / 'work_dirs' / ROW
    work_dir.mkdir(parents=True)
    (work_dir / 'run.json').write_text(json.dumps(dict(finished='today')))
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_4.pth'))
    steps = chain()
    assert [step[1] for step in steps] == ['x', 'x', 'x', ' ', ' ']
    assert steps[3].endswith('epoch_4.pth')
