"""A race from the command to its page, with trainings that are real and short."""

import json
import signal
import sys
from types import SimpleNamespace

import pytest

from mmnorm.cli import main, race

LENGTH = 'train_cfg = dict(max_epochs=2, val_interval=1)'


@pytest.fixture
def config(digits_config):
    return str(digits_config(LENGTH))


@pytest.fixture
def forked(forked_tool, monkeypatch):
    """Have trainings be forked; returns the configs (Path) of those that ran."""
    ran = []

    def start(command, stdout, stderr, env):
        assert command[:4] == [sys.executable, '-m', 'mmnorm_door', 'train']
        ran.append(command[4])
        done = forked_tool('train.py', *command[4:])
        stdout.write(done.stdout.encode())
        return SimpleNamespace(poll=lambda: done.returncode, returncode=done.returncode)

    monkeypatch.setattr(race.subprocess, 'Popen', start)
    monkeypatch.setattr(race, 'POLL', 0)
    return ran


@pytest.mark.e2e
def test_a_race(config, forked, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = ['race', config, '--norms', 'BN', 'SN', '--batch-sizes', '4', '--length', '0.5', '--out', 'race']
    assert main([*line, '--check']) == 0
    told = capsys.readouterr().out
    assert '2 trainings, 0 of them finished: BN, SN; 4 images' in told and not (tmp_path / 'race').exists()
    assert main(line) == 0, (tmp_path / 'race/BN_b4_seed0/console.log').read_text()[-3000:]
    told = capsys.readouterr().out
    assert 'SN_b4_seed0: finished' in told and 'race/race.html' in told
    written = json.loads((tmp_path / 'race/race.json').read_text())
    assert [start['state'] for start in written['starts']] == ['finished', 'finished']
    assert [start['iterations'] for start in written['starts']] == [4, 4]  # 16 images, once
    records = [json.loads((tmp_path / f'race/{norm}_b4_seed0/run.json').read_text()) for norm in ('BN', 'SN')]
    assert [list(record['norms']) for record in records] == [['BatchNorm2d'], ['SN']]

    # what is finished is not trained again, and the race can grow; another race is refused
    assert main([*line, '--seeds', '0', '1', '--norms', 'SN']) == 0
    assert [path.rpartition('/')[2] for path in forked] == ['BN_b4_seed0.py', 'SN_b4_seed0.py', 'SN_b4_seed1.py']
    written = json.loads((tmp_path / 'race/race.json').read_text())
    assert [start['name'] for start in written['starts']] == ['BN_b4_seed0', 'SN_b4_seed0', 'SN_b4_seed1']
    capsys.readouterr()
    assert main([*line, '--lr-scaling', 'sqrt']) == 2
    assert 'race/race.json is of a race with settings' in capsys.readouterr().err


@pytest.fixture
def begun(monkeypatch):
    """Have trainings end at once as a test says: (exit status, what it printed), one for each; returns these."""
    ends = []

    def start(command, stdout, stderr, env):
        status, said = ends.pop(0)
        stdout.write(said)
        return SimpleNamespace(poll=lambda: status, returncode=status)

    monkeypatch.setattr(race.subprocess, 'Popen', start)
    monkeypatch.setattr(race, 'POLL', 0)
    return ends


def test_a_training_that_fails_does_not_end_the_race(config, begun, tmp_path, capsys):
    out = tmp_path / 'race'
    begun += [(2, b'...\nerror: the loss was NaN\n'), (-9, b'')]
    line = ['race', config, '--norms', 'BN', 'as-is', '--out', str(out)]
    assert main(line) == 1
    told = capsys.readouterr().out
    assert 'BN_b2_seed0: error: the loss was NaN (exit status 2; ' in told
    assert 'as-is_b2_seed0: no message (exit status -9; ' in told
    assert '2 failed' in (out / 'race.html').read_text()
    begun += [(2, b'error: again\n')] * 2  # they are tried again
    assert main(line) == 1 and not begun


def test_norms_that_cannot_race_are_told_before_any_training(config, begun, tmp_path, capsys):
    assert main(['race', config, '--norms', 'BN', 'Foo', 'GN:num_groups=7', '--out', str(tmp_path / 'race')]) == 2
    told = capsys.readouterr().err
    assert 'no norm is registered as Foo' in told and 'GN:num_groups=7: the network cannot be built' in told
    assert not (tmp_path / 'race').exists()


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--length', '0'], 'must be above 0 and at most 1, got 0'),
        (['--length', 'half'], 'must be above 0 and at most 1, got half'),
        (['--batch-sizes', '0'], 'must be 1 or more, got 0'),
        (['--seeds', '-1'], 'must be 0 or more, got -1'),
    ],
)
def test_mistakes(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(['race', 'config.py', *words])
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_ctrl_c_ends_the_trainings(config, tmp_path, monkeypatch, capsys):
    sent = []
    process = SimpleNamespace(poll=lambda: None, send_signal=sent.append, wait=lambda: sent.append('waited'))
    monkeypatch.setattr(race.subprocess, 'Popen', lambda *args, **kwargs: process)

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(race, 'time', SimpleNamespace(sleep=interrupt))
    assert (
        main(['race', config, '--norms', 'BN', '--jobs', '2', '--seeds', '0', '1', '--out', str(tmp_path / 'r')]) == 130
    )
    assert sent == [signal.SIGINT, signal.SIGINT, 'waited', 'waited']
    assert 'the same command goes on' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('visible', 'count', 'processes', 'jobs', 'wanted'),
    [
        ('', 0, 1, None, (1, [])),
        ('', 0, 1, 3, (3, [])),
        ('', 4, 1, None, (4, ['0', '1', '2', '3'])),
        ('', 8, 2, None, (4, ['0,1', '2,3', '4,5', '6,7'])),
        ('5,3', 2, 1, None, (2, ['5', '3'])),
        ('', 2, 1, 4, (4, [])),
    ],
)
def test_trainings_share_out_the_gpus(monkeypatch, visible, count, processes, jobs, wanted):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    monkeypatch.setattr('torch.cuda.device_count', lambda: count)
    assert race.slots(SimpleNamespace(processes=processes, jobs=jobs)) == wanted
