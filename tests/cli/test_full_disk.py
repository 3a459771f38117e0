"""A disk that is full, or a folder that may not be written to, is one line and exit status 2 in every tool."""

import argparse
import errno
import os
import re

import pytest
import torch
from mmdet.models.backbones import ResNet

from mmnorm import cli, engine
from mmnorm.cli import statistics
from mmnorm.engine import room
from tests.processes import ROOT

LINE = r'error: .*{} could not be written: the disk is full( \(.* are free\))(\. .*)'


@pytest.fixture
def full(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fail)
    monkeypatch.setattr('PIL.Image.Image.save', fail)


def told(capsys, argv, pattern):
    """Run a command, and see that it ends with one line about a file."""
    assert cli.main([str(arg) for arg in argv]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if 'error' in line]) == 1 and re.fullmatch(LINE.format(pattern), said[-1]), said


def test_convert(full, tmp_path, capsys):
    torch.save(ResNet(18, base_channels=8).state_dict(), tmp_path / 'bn.pth')
    told(capsys, ['convert', tmp_path / 'bn.pth', tmp_path / 'sn.pth', '--to', 'SN'], 'sn.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['bn.pth']


def test_report(full, tmp_path, capsys):
    (tmp_path / 'config.py').write_text('')
    told(capsys, ['report', tmp_path], r'report\.csv')
    assert [path.name for path in tmp_path.iterdir()] == ['config.py']


def test_digits(full, tmp_path, capsys):
    told(capsys, ['digits', tmp_path / 'digits', '--train', 1, '--val', 1], 'digits')
    assert not list(tmp_path.iterdir())


def test_steps_of_statistics(full, tmp_path, capsys, monkeypatch):
    """Whatever a step has computed, it writes so."""
    evaluation = argparse.Namespace(work_dir=tmp_path, notes=[])
    monkeypatch.setattr(engine, 'open_evaluation', lambda args, splits: (evaluation, None))

    def shift(args, evaluation, original):
        statistics.write(args, evaluation, dict(layers={}))

    monkeypatch.setattr(statistics, 'shift', shift)
    told(capsys, ['statistics', 'shift', 'config.py', 'a.pth'], r'shift\.json')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('command', [['diagnose'], ['statistics', 'shift']], ids=' '.join)
def test_evaluations_do_not_start_without_access(tmp_path, capsys, monkeypatch, command):
    evaluation = argparse.Namespace(work_dir=tmp_path, notes=[])
    monkeypatch.setattr(engine, 'open_evaluation', lambda *args: (evaluation, None))
    (tmp_path / 'file').touch()
    assert cli.main([*command, 'config.py', 'a.pth', '--out', str(tmp_path / 'file/out.json')]) == 2
    assert f'{tmp_path}/file is a file, not a folder\n' in capsys.readouterr().err


@pytest.mark.parametrize('free, status', [(1000, 2), (10**12, 0)])
def test_a_check_knows_how_large_a_checkpoint_is(digits_config, tmp_path, capsys, monkeypatch, free, status):
    monkeypatch.setattr(engine, 'die_with_parent', lambda: None)
    monkeypatch.setattr(room, 'free_space', lambda folder: free)
    work_dir = tmp_path / 'new/work'
    assert cli.main(['train', str(digits_config()), '--check', '1', '--work-dir', str(work_dir)]) == status
    said = capsys.readouterr().err
    assert not work_dir.exists()
    assert status == 0 or re.search(rf'error: {work_dir} has no room for a checkpoint: it takes about \d+.\d MB', said)


LIMITED = f"""
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000_000, resource.RLIM_INFINITY))
sys.path.insert(0, {str(ROOT / 'tools')!r})
runpy.run_path({str(ROOT / 'tools/train.py')!r}, run_name='__main__')
"""


@pytest.mark.e2e
@pytest.mark.slow
def test_train(forked_tool, digits_config, tmp_path):
    (tmp_path / 'limited.py').write_text(LIMITED)
    config = digits_config("train_dataloader['dataset'] = dict(data, indices=2)\ntrain_cfg = dict(max_epochs=1)")
    done = forked_tool(str(tmp_path / 'limited.py'), config)
    assert done.returncode == 2 and 'Traceback' not in done.stdout, done.stdout[-3000:]
    size = re.search(
        r'\nerror: .*work_dirs/project/epoch_1.pth could not be written: it would be larger than a file may be '
        r'\(.*\) \(([^(]*) MB are needed\). Nothing unfinished is left\n',
        done.stdout,
    )[1]
    assert float(size) > 30 and not list((tmp_path / 'work_dirs/project').glob('*.pth*'))
