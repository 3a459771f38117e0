"""A search for the learning rate trains each, reports the best, and does not train again what is done."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mmnorm.cli import launch, run_command, zoo
from mmnorm.zoo import Model, Published
from mmnorm.zoo.rows import METAFILE
from tests.processes import environment

RATES = {'optim_wrapper.optimizer.lr': [1e-3, 1e-9]}


def searched(path, rates):
    """The entry of a config of which the paper searched the learning rate."""
    return Model(
        'project',
        str(path),
        'xbn',
        'object detection',
        'EN',
        'scratch',
        'R-50',
        'digits',
        {},
        published=(Published('xbn Table 6', 'BN', 'digits val', {'AP^bbox': 1.0}),),
        sweep=rates,
    )


@pytest.mark.e2e
@pytest.mark.timeout(900)
@pytest.mark.parametrize('forks', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_best_learning_rate(request, digits_config, tmp_path, capfd, monkeypatch, forks):
    monkeypatch.setenv('PATH', environment()['PATH'])
    if forks:
        request.getfixturevalue('forked_training')
    path = digits_config('train_cfg = dict(max_epochs=1, val_interval=1)', base='faster_rcnn_en_r50_digits')
    args = argparse.Namespace(work_dir=str(tmp_path / 'sweep'), processes=1, cfg_options=['randomness.seed=3'])
    model = searched(path, RATES)
    assert zoo.sweep(model, args) == 0
    found = json.loads((tmp_path / 'sweep/sweep.json').read_text())
    assert found['option'] == 'optim_wrapper.optimizer.lr' and list(found['results']) == ['0.001', '1e-09']
    for rate in RATES['optim_wrapper.optimizer.lr']:
        text = (tmp_path / f'sweep/lr_{rate}/project.py').read_text()
        assert f'lr={rate}' in text.replace(' ', '') and 'seed=3' in text
    capfd.readouterr()
    monkeypatch.setattr(launch.subprocess, 'run', None)  # nothing is trained again
    assert zoo.sweep(model, args) == 0
    assert 'the best' in capfd.readouterr().out


def test_trainings_that_fail_or_detect_nothing_do_not_end_the_search(tmp_path, capsys, monkeypatch):
    """One fails, one diverges, so that mmdet logs a validation without metrics, one logs none, and the last is well."""
    trained = []

    def train(command, env):
        work_dir = Path(command[command.index('--work-dir') + 1])
        trained.append(work_dir.name)
        if work_dir.name == 'lr_0.1':
            return SimpleNamespace(returncode=1)
        logs = work_dir / '20250101_120000/vis_data'
        logs.mkdir(parents=True)
        metrics = {'coco/bbox_mAP': 0.25} if work_dir.name == 'lr_0.01' else {}
        lines = [dict(loss=1.0, lr=0.1, time=0.1, iter=10, step=10), dict(metrics, time=0.1, data_time=0.1, step=10)]
        lines = lines[:1] if work_dir.name == 'lr_0.02' else lines
        (logs / 'scalars.json').write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
        (work_dir / 'run.json').write_text(json.dumps(dict(finished='2025-01-01T12:01:00')))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(launch.subprocess, 'run', train)
    model = searched('project.py', {'optim_wrapper.optimizer.lr': [0.1, 0.04, 0.02, 0.01]})
    args = argparse.Namespace(work_dir=str(tmp_path), processes=1, cfg_options=[])
    assert zoo.sweep(model, args) == 1
    assert trained == ['lr_0.1', 'lr_0.04', 'lr_0.02', 'lr_0.01']
    said = capsys.readouterr()
    assert 'lr 0.1: its training failed with exit status 1' in said.out
    assert 'lr 0.04: no AP^bbox in its last validation' in said.out and 'lr 0.01: AP^bbox 25.0, the best' in said.out
    assert '1 of 4 trainings failed' in said.err
    found = json.loads((tmp_path / 'sweep.json').read_text())
    assert found['best'] == 0.01 and found['failed'] == {'0.1': 1}
    assert found['results'] == {'0.04': {}, '0.02': {}, '0.01': {'AP^bbox': 25.0}}
    assert zoo.sweep(model, args) == 1 and trained[4:] == ['lr_0.1']  # and only it is trained again


def test_no_training_has_the_metric(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(launch.subprocess, 'run', lambda command, env: SimpleNamespace(returncode=2))
    args = argparse.Namespace(work_dir=str(tmp_path / 'new'), processes=1, cfg_options=[])
    assert zoo.sweep(searched('project.py', RATES), args) == 1
    assert json.loads((tmp_path / 'new/sweep.json').read_text())['best'] is None
    assert '2 of 2 trainings failed' in capsys.readouterr().err


def test_interruption_ends_the_search(tmp_path, capsys, monkeypatch):
    def interrupt(command, env):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch.subprocess, 'run', interrupt)
    assert run_command('zoo', ['sweep', 'faster_rcnn_bn_r50_scratch_8x2', '1', '--work-dir', str(tmp_path)]) == 130
    assert 'interrupted: the same command continues' in capsys.readouterr().err


def test_rows_that_have_a_search_are_those_of_the_metafile(capsys):
    assert run_command('zoo', ['sweep', 'mask_rcnn_xbn_r50', '2']) == 2
    entries = yaml.safe_load(METAFILE.read_text())['Models']
    tables = {row['Table'] for entry in entries if 'Sweep' in entry for row in entry['Published']}
    assert tables and capsys.readouterr().err == (
        f'error: mask_rcnn_xbn_r50 has no search in its paper; these tables have one: {", ".join(sorted(tables))}\n'
    )
