"""The commands of `mmnorm`, and that tools/ are doors to the same."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

import mmnorm
from mmnorm import cli
from tests.processes import ROOT, environment

DOORS = dict(
    train='train.py',
    test='test.py',
    report='report.py',
    race='race.py',
    diagnose='diagnose.py',
    statistics='bn_statistics.py',
    weights='norm_weights.py',
    zoo='zoo.py',
    convert='convert_checkpoint.py',
    benchmark='benchmark_norms.py',
    digits='make_digits.py',
    doctor='doctor.py',
    **{'check-data': 'check_data.py'},
)
STEPS = [('statistics', step) for step in ('shift', 'recollect', 'evalnorm', 'perturb')]
STEPS += [('weights', step) for step in ('show', 'harden')]
STEPS += [('zoo', step) for step in ('list', 'show', 'check', 'table', 'sweep')]
# Run as doors and as `mmnorm`, all in one process that has imported nothing
LIGHT = """
import json, runpy, sys
for path, *argv in json.loads(sys.argv.pop()):
    sys.argv = [path, *argv]
    try:
        runpy.run_path(path, run_name='__main__')
    except SystemExit as end:
        assert not end.code, (path, argv)
    heavy = {'torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'matplotlib', 'pandas', 'sklearn'} & set(sys.modules)
    assert not heavy, (path, argv, heavy)
"""


def help_of(capsys, *argv):
    with pytest.raises(SystemExit) as end:
        cli.main([*argv, '--help'])
    assert end.value.code == 0
    return capsys.readouterr().out


def words(text):
    """Without line breaks, which depend on the length of the program's name."""
    return ' '.join(text.split())


@pytest.mark.parametrize('argv', [*((name,) for name in cli.COMMANDS), *STEPS], ids=' '.join)
def test_help_has_an_example_that_the_command_takes(capsys, monkeypatch, argv):
    said = help_of(capsys, *argv)
    assert said.startswith(f'usage: mmnorm {" ".join(argv)} ')
    (example,) = re.findall(rf'^(?:example:\s+)mmnorm ({argv[0]} .+)$', said, flags=re.M)
    assert tuple(example.split()[: len(argv)]) == argv
    taken = []
    monkeypatch.setattr(sys.modules[f'mmnorm.cli.{argv[0].replace("-", "_")}'], 'run', taken.append)
    monkeypatch.setattr('mmnorm.cli.launch.launch', lambda name, module, args: taken.append(args))
    assert cli.main(example.split()) == 0 and taken[0].argv == example.split()[1:]


def test_help_lists_the_commands(capsys):
    said = help_of(capsys)
    assert all(re.search(f'^  {name} +{re.escape(what)}$', said, flags=re.M) for name, what in cli.COMMANDS.items())
    folder = {path.stem.replace('check_', 'check-') for path in (ROOT / 'mmnorm/cli').glob('*.py')}
    shared = {
        '__init__',
        '__main__',
        'arguments',
        'chain',
        'first_batch',
        'launch',
        'light',
        'mistakes',
        'places',
        'ranks',
    }
    assert folder - set(cli.COMMANDS) == shared


@pytest.mark.parametrize('argv', [[], ['trian', 'config.py'], ['--wrong']])
def test_a_wrong_command_is_told_which_there_are(capsys, argv):
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    said = capsys.readouterr().err
    assert end.value.code == 2 and 'mmnorm: error: ' in said
    if argv == ['trian', 'config.py']:
        assert "'trian'" in said and all(f"'{name}'" in said for name in cli.COMMANDS)


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(['--version'])
    assert capsys.readouterr().out == f'mmnorm {mmnorm.__version__}\n'


@pytest.mark.parametrize('name', DOORS)
def test_door_is_the_same_command(capsys, monkeypatch, name):
    monkeypatch.setattr(sys, 'argv', [str(ROOT / 'tools' / DOORS[name]), '--help'])
    assert f"enter('{name}')" in (ROOT / 'tools' / DOORS[name]).read_text()
    with pytest.raises(SystemExit):
        cli.run_command(name)  # which is what the door calls
    through_door = capsys.readouterr().out
    assert words(through_door) == words(help_of(capsys, name)).replace(f'mmnorm {name} [', f'{DOORS[name]} [', 1)


def test_help_imports_nothing_heavy():
    commands = [(name,) for name in cli.COMMANDS] + STEPS
    calls = [[str(ROOT / 'tools' / DOORS[name]), *step, '--help'] for name, *step in commands if name in DOORS]
    calls += [[str(ROOT / 'mmnorm_door.py'), *argv, '--help'] for argv in [(), *commands]]
    calls += [[str(ROOT / 'mmnorm_door.py'), '--version']]
    done = subprocess.run(
        [sys.executable, '-c', LIGHT, json.dumps(calls)],
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(environment(), PYTHONPATH=str(ROOT / 'tools')),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('usage: ') == len(calls) - 1 and done.stdout.endswith(f'mmnorm {mmnorm.__version__}\n')


@pytest.mark.parametrize('name', cli.COMMANDS)
def test_an_interrupted_command_says_so_in_one_line(capsys, monkeypatch, name):
    said = help_of(capsys, name)
    (example,) = re.findall(rf'^(?:example:\s+)mmnorm ({name} .+)$', said, flags=re.M)

    def interrupted(*_):
        raise KeyboardInterrupt('and what then')

    monkeypatch.setattr(sys.modules[f'mmnorm.cli.{name.replace("-", "_")}'], 'run', interrupted)
    monkeypatch.setattr('mmnorm.cli.launch.launch', interrupted)
    assert cli.main(example.split()) == 130
    assert capsys.readouterr().err == 'interrupted: and what then\n'
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # a second one would be a traceback


@pytest.mark.parametrize('argv', [['tools/train.py', 'c.py'], ['mmnorm_door.py', 'diagnose', 'c.py', 'k.pth']], ids=str)
def test_an_interrupted_import_says_so_in_one_line(tmp_path, argv):
    (tmp_path / 'torch.py').write_text('import os, signal\nos.kill(os.getpid(), signal.SIGINT)')
    done = subprocess.run(
        [sys.executable, ROOT / argv[0], *argv[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(environment(), PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)])),
    )
    assert (done.returncode, done.stderr) == (130, 'interrupted\n')


def test_a_missing_package_is_told(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'mmnorm.data', None)
    assert cli.main(['digits', str(tmp_path / 'digits')]) == 2
    assert re.match('error: .*mmnorm.data', capsys.readouterr().err)


def test_an_error_does_nothing_to_the_terminal(capsys):
    assert cli.main(['report', 'a\x1b[31m\nb']) == 2
    said = capsys.readouterr().err
    assert '\x1b' not in said and said.startswith('error: a?[31m b') and said.count('\n') == 1


class Started(Exception):
    """In the place of a process that becomes another."""


@pytest.fixture
def started(monkeypatch):
    """What a command would become."""
    found = []

    def execv(path, argv):
        found.extend(argv)
        raise Started

    monkeypatch.setattr(os, 'execv', execv)
    for name in ('NNODES', 'NODE_RANK', 'MASTER_ADDR', 'PORT'):
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.mark.parametrize('name', ['train', 'test', 'diagnose', 'statistics'])
def test_several_processes(started, digits_config, tmp_path, name):
    config, checkpoint = str(digits_config()), tmp_path / 'k.pth'
    checkpoint.write_bytes(b'')
    argv = {'train': [config], 'statistics': ['shift', config, str(checkpoint)]}.get(name, [config, str(checkpoint)])
    argv += ['--processes', '2', '--cfg-options', 'randomness.seed=1']
    with pytest.raises(Started):
        cli.main([name, *argv])
    assert started == [
        sys.executable,
        str(ROOT / 'mmnorm/cli/ranks.py'),
        '--standalone',
        '--nproc_per_node',
        '2',
        '-m',
        'mmnorm_door',
        name,
        *argv,
        '--launcher',
        'pytorch',
    ]


def test_several_machines(started, digits_config, monkeypatch):
    monkeypatch.setenv('NNODES', '2')
    monkeypatch.setenv('NODE_RANK', '1')
    monkeypatch.setenv('MASTER_ADDR', '10.0.0.1')
    with pytest.raises(Started):
        cli.main(['train', str(digits_config()), '--processes', '8', '--timeout', '60'])
    assert started[2:15] == [
        '--nnodes',
        '2',
        '--node_rank',
        '1',
        '--master_addr',
        '10.0.0.1',
        '--master_port',
        '29500',
        '--rdzv_conf',
        'timeout=60',
        '--nproc_per_node',
        '8',
        '-m',
    ]


def test_several_processes_are_checked_once_before_they_start(started, digits_config, capsys):
    config = digits_config("train_dataloader = dict(dataset=dict(data_root='nowhere'))")
    assert cli.main(['train', str(config), '--processes', '2']) == 2
    assert 'the data set is missing' in capsys.readouterr().err and not started
    whole = str(digits_config(name='whole.py'))
    assert cli.main(['train', whole, '--processes', '2', '--check', '2']) == 0 and not started
    with pytest.raises(SystemExit):
        cli.main(['train', str(config), '--processes', 'two'])
    assert '--processes: must be 1 or more, got two' in capsys.readouterr().err
