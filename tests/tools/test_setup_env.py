"""tools/setup_env.py, without a network: Python and pip are a shell script that notes what it is asked to do."""

import ast
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / 'tools' / 'setup_env.py'
PYTHON_NAME = f'python{sys.version_info[0]}.{sys.version_info[1]}'
SOURCES = ('nms.cpp', 'pybind.cpp', 'roi_align.cpp', 'cpu/nms.cpp')

# Notes its command lines in $HOME/calls, and the environment and sources of each build of mmcv. A command line (with
# the sources where it builds) that contains $FAIL_AT prints the file $HOME/failure and fails.
PYTHON = """#!/bin/sh
echo $* >> "$HOME/calls"
source=${10}
sources=$(ls "$source/mmcv/ops/csrc/pytorch" 2>/dev/null)
case "$* $sources" in
*"$FAIL_AT"*) cat "$HOME/failure"; exit 1 ;;
'-m venv '*) mkdir -p "${4:-$3}/bin"; cp "$0" "${4:-$3}/bin/python" ;;
'-m pip cache dir'*) [ "$NO_CACHE" ] && exit 1; echo "$HOME/cache" ;;
*torch.__version__*) echo "torch-2.13.0-for-$DEVICE" ;;
*importlib.metadata*) echo 4.12.0.88 ;;
*--only-binary*) [ -e "$8"/onedl_mmcv.whl ] ;;
'-m pip download '*) cp "$HOME/onedl_mmcv-2.3.6.tar.gz" "$9" ;;
'-m pip wheel '*) echo "$sources" > "$HOME/sources"; env > "$HOME/variables"; echo > "$9/onedl_mmcv.whl"
    cp "$source/mmcv/ops/csrc/pytorch/dispatchers.cpp" "$HOME" 2>/dev/null || true ;;
esac
"""
APT_GET = """#!/bin/sh
case "$*" in *download*) echo > python.deb ;; esac
"""
DPKG = f"""#!/bin/sh
mkdir -p "$3/usr/include/{PYTHON_NAME}"
echo > "$3/usr/include/{PYTHON_NAME}/Python.h"
"""


def load_script():
    spec = importlib.util.spec_from_file_location('setup_env', SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


class Machine:
    """A machine with nothing but the stub above, a compiler, the headers of Python and an index that has mmcv."""

    def __init__(self, root, monkeypatch, capsys):
        self.script = load_script()
        self.root, self.monkeypatch, self.capsys = root, monkeypatch, capsys
        self.checkout, self.env, self.headers = root / 'checkout', root / 'env', root / 'headers'
        for folder in (self.checkout, self.headers, root / 'bin'):
            folder.mkdir()
        shutil.copy(SCRIPT.parents[1] / 'setup.py', self.checkout)
        (self.headers / 'Python.h').touch()
        for tool in ('cat', 'cp', 'env', 'ls', 'mkdir'):
            (root / 'bin' / tool).symlink_to(shutil.which(tool))
        self.add_program('c++', '')
        self.add_program('python', PYTHON)
        with tarfile.open(root / 'onedl_mmcv-2.3.6.tar.gz', 'w:gz') as sdist:
            for source in SOURCES:
                sdist.add(os.devnull, f'onedl_mmcv-2.3.6/mmcv/ops/csrc/pytorch/{source}', filter=as_file)

        monkeypatch.setattr(self.script, 'ROOT', self.checkout)
        monkeypatch.setattr(self.script, 'LOCK', self.checkout / 'build' / 'setup_env.lock')
        monkeypatch.setattr(self.script, 'LOG', self.checkout / 'build' / 'setup_env.log')
        python_flags = {'CFLAGS': '-O3 -g', 'INCLUDEPY': str(self.headers)}
        monkeypatch.setattr(self.script.sysconfig, 'get_config_var', python_flags.get)
        monkeypatch.setattr(sys, 'executable', str(root / 'bin' / 'python'))
        for name in ('CXX', 'CFLAGS', 'MAX_JOBS'):
            monkeypatch.delenv(name, raising=False)
        for name, value in {'PATH': root / 'bin', 'HOME': root, 'DEVICE': 'cpu'}.items():
            monkeypatch.setenv(name, str(value))
        self.fail_at('nothing')

    def add_program(self, name, text):
        (self.root / 'bin' / name).write_text(text)
        (self.root / 'bin' / name).chmod(0o755)

    def fail_at(self, command, output=''):
        self.monkeypatch.setenv('FAIL_AT', command)
        (self.root / 'failure').write_text(output)

    def set_up(self, *arguments):
        """Run it; return the commands that it ran."""
        code, calls = self.run(*arguments)
        assert code == 0
        return calls

    def run(self, *arguments):
        (self.root / 'calls').write_text('')
        code = self.script.main(['--env', str(self.env), *arguments])
        return code, (self.root / 'calls').read_text().splitlines()

    def error(self, *arguments):
        """Run what fails; return the one line that it writes on stderr."""
        code, _ = self.run(*arguments)
        errors = self.capsys.readouterr().err
        assert code == 1
        assert errors.startswith('error: ') and errors.count('\n') == 1
        return errors.strip()

    def build_variables(self):
        return dict(line.split('=', 1) for line in (self.root / 'variables').read_text().splitlines())

    def built_sources(self):
        return (self.root / 'sources').read_text().split()


def as_file(member):
    member.type = tarfile.REGTYPE
    return member


@pytest.fixture
def machine(tmp_path, monkeypatch, capsys):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Machine(tmp_path, monkeypatch, capsys)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def pip_calls(calls, command):
    return [call.replace(f'-m pip {command} ', '') for call in calls if call.startswith(f'-m pip {command} ')]


# The steps


def test_the_steps_in_order(machine):
    calls = machine.set_up()
    assert calls[0] == f'-m venv {machine.env}'
    torch, tools, kept, compiled, torchvision, mmnorm = pip_calls(calls, 'install')
    assert torch == 'torch==2.13.0'
    assert tools == 'ninja packaging psutil setuptools<81 wheel'
    assert kept.endswith(' onedl-mmcv==2.3.6')
    assert compiled.startswith('--no-deps --force-reinstall ') and compiled.endswith('.whl')
    assert torchvision == '--no-deps torchvision==0.16.2'
    assert mmnorm == 'torch==2.13.0 -e .[onedl,onedl-pretrain,demo,test,lint]'
    assert calls[-1].startswith('-c import cv2, mmcv.ops, mmdet')
    steps = [line for line in machine.capsys.readouterr().out.splitlines() if line.startswith('[')]
    assert [step[:5] for step in steps] == [f'[{n}/6]' for n in range(1, 7)]


def test_arguments_choose_the_packages(machine):
    installs = pip_calls(machine.set_up('--set', 'classic', '--extras', 'report', '--torch', 'torch==2.5.1'), 'install')
    assert installs[0] == 'torch==2.5.1'
    assert installs[2].endswith(' mmcv==2.1.0')
    assert installs[5] == 'torch==2.5.1 -e .[classic,classic-pretrain,report]'


def test_torchvision_is_that_of_the_pytorch_on_a_gpu(machine, monkeypatch):
    monkeypatch.setenv('DEVICE', 'gpu')
    assert 'torch==2.13.0 torchvision' in pip_calls(machine.set_up(), 'install')


@pytest.mark.parametrize(
    'reason',
    ['No matching distribution found for torchvision==0.16.2', 'ResolutionImpossible: for help visit https://a.b'],
)
def test_mmpretrain_is_left_out_where_no_torchvision_works(machine, reason):
    machine.fail_at('torchvision', f'ERROR: {reason}')
    assert pip_calls(machine.set_up(), 'install')[-1] == 'torch==2.13.0 -e .[onedl,demo,test,lint]'
    assert 'mmpretrain, to pretrain with, is left out' in machine.capsys.readouterr().out


def test_an_index_that_cannot_be_reached_leaves_nothing_out(machine):
    machine.fail_at('torchvision', 'Could not fetch URL: ...\nERROR: ... (from versions: none)')
    assert 'the package index cannot be reached' in machine.error('--extras', 'report')


def test_opencv_that_needs_a_desktop_is_overlaid(machine):
    machine.fail_at('-c import cv2')
    _, calls = machine.run()
    assert '--force-reinstall --no-deps opencv-python-headless==4.12.0.88' in pip_calls(calls, 'install')


# mmcv


def test_mmcv_is_built_optimized_with_operators_on_all_cores(machine, monkeypatch):
    monkeypatch.setenv('CFLAGS', '-march=native')
    machine.set_up()
    variables = machine.build_variables()
    assert variables['MMCV_WITH_OPS'] == '1'
    assert variables['MAX_JOBS'] == str(len(os.sched_getaffinity(0)))
    assert variables['CFLAGS'] == '-O3 -g -march=native -g0'
    assert variables['PATH'].split(':')[0] == str(machine.env / 'bin')  # the environment's ninja
    assert 'CPATH' not in variables


def test_dispatchers_are_compiled_as_one_file(machine):
    machine.set_up()
    assert machine.built_sources() == ['cpu', 'dispatchers.cpp', 'nms.inc', 'pybind.cpp', 'roi_align.inc']
    assert (machine.root / 'dispatchers.cpp').read_text() == '#include "nms.inc"\n#include "roi_align.inc"\n'


@pytest.mark.parametrize('name, value', [('FAIL_AT', 'dispatchers.cpp'), ('DEVICE', 'gpu')])
def test_files_are_compiled_one_by_one_for_a_gpu_and_where_merging_fails(machine, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    machine.set_up()
    assert machine.built_sources() == ['cpu', 'nms.cpp', 'pybind.cpp', 'roi_align.cpp']


def test_the_wheel_serves_the_next_environment_with_this_torch(machine, monkeypatch):
    assert len(pip_calls(machine.set_up(), 'wheel')) == 1
    shutil.rmtree(machine.env)
    assert not pip_calls(machine.set_up(), 'wheel')
    shutil.rmtree(machine.env)
    monkeypatch.setenv('DEVICE', 'gpu')
    assert len(pip_calls(machine.set_up(), 'wheel')) == 1
    assert len(list((machine.root / 'cache').rglob('*'))) == 5  # two wheels and their folders, no part of a wheel


def test_without_a_cache_of_pip_the_wheel_is_kept_in_the_checkout(machine, monkeypatch):
    monkeypatch.setenv('NO_CACHE', '1')
    machine.set_up()
    assert (machine.checkout / 'build' / 'mmnorm' / 'torch-2.13.0-for-cpu' / 'onedl_mmcv.whl').exists()


def test_mmcv_that_does_not_fit_is_rebuilt_file_by_file(machine):
    machine.set_up()
    machine.fail_at('get_compiling_cuda_version')
    calls = machine.set_up('--extras', 'report')
    assert len(pip_calls(calls, 'wheel')) == 1
    assert 'dispatchers.cpp' not in machine.built_sources()


def test_missing_headers_are_unpacked_into_the_environment(machine):
    (machine.headers / 'Python.h').unlink()
    machine.add_program('apt-get', APT_GET)
    machine.add_program('dpkg', DPKG)
    machine.set_up()
    include = machine.env / 'headers' / 'usr' / 'include'
    assert machine.build_variables()['CPATH'] == f'{include}:{include / PYTHON_NAME}'


# Repetition


def test_a_finished_environment_is_left_alone(machine):
    machine.set_up()
    assert machine.set_up() == ['-c import pip']
    assert machine.capsys.readouterr().out.endswith(f'{machine.env} is ready\n')


def fail(machine):
    machine.fail_at('-e .', 'the first failure')
    machine.error('--extras', 'demo')
    machine.fail_at('nothing')


def change_setup_py(machine):
    (machine.checkout / 'setup.py').write_text("'onedl-mmcv==2.4.0'")


def lose_stamp(machine, text=''):
    (machine.env / 'setup_env.json').write_text(text)
    (machine.env / 'pyvenv.cfg').touch()


def give_to(machine, checkout):
    stamp = json.loads((machine.env / 'setup_env.json').read_text())
    lose_stamp(machine, json.dumps(dict(stamp, folder=str(checkout))))


UPDATES = {
    'other extras': (lambda machine: None, ['--extras', 'report']),
    'changed setup.py': (change_setup_py, []),
    'changed script': (lambda machine: setattr(machine.script, '__file__', __file__), []),
    'failed': (fail, []),
    'of other making': (lose_stamp, []),
    'truncated stamp': (lambda machine: lose_stamp(machine, '{"folder": '), []),
}


@pytest.mark.parametrize('change, arguments', UPDATES.values(), ids=UPDATES)
def test_an_environment_is_completed(machine, change, arguments):
    machine.set_up()
    change(machine)
    calls = machine.set_up(*arguments)
    assert len(pip_calls(calls, 'install')) == 5
    assert not [call for call in calls if 'venv' in call]
    assert 'the first failure' not in machine.script.LOG.read_text()


REMAKES = {
    'torch': (lambda machine: None, ['--torch', 'torch==2.5.1']),
    'set': (lambda machine: None, ['--set', 'classic']),
    'no Python': (lambda machine: (machine.env / 'bin' / 'python').unlink(), []),
    'moved': (lambda machine: give_to(machine, machine.root / 'gone'), []),
}


@pytest.mark.parametrize('change, arguments', REMAKES.values(), ids=REMAKES)
def test_an_environment_is_remade(machine, change, arguments):
    machine.set_up()
    change(machine)
    assert f'-m venv --clear {machine.env}' in machine.set_up(*arguments)


def test_an_environment_of_another_checkout_is_left_alone(machine):
    machine.set_up()
    other = shutil.copytree(machine.checkout, machine.root / 'other')
    give_to(machine, other)
    told = f'error: {machine.env} is the environment of {other}: remove it, or choose another with --env'
    (machine.checkout / '.venv').symlink_to(machine.env)
    assert machine.error() == machine.error('--env', str(machine.checkout / '.venv')) == told
    assert json.loads((machine.env / 'setup_env.json').read_text())['folder'] == str(other)


def test_an_environment_in_this_checkout_is_its_own(machine):
    machine.env = machine.checkout / '.venv'
    machine.set_up()
    give_to(machine, shutil.copytree(machine.checkout, machine.root / 'other'))
    assert f'-m venv --clear {machine.env}' in machine.set_up()


def test_two_set_ups_take_turns(tmp_path):
    script = load_script()
    order = []

    def second():
        with script.locked(tmp_path / 'build' / 'lock'):
            order.append('second')

    thread = threading.Thread(target=second)
    with script.locked(tmp_path / 'build' / 'lock'):
        thread.start()
        thread.join(timeout=0.3)
        order.append('first')
    thread.join(timeout=10)
    assert order == ['first', 'second']


@pytest.fixture
def running(tmp_path):
    """A set-up in a process of its own, within a command that takes long; and the pid of that command's child."""
    program = rf"""
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location('setup_env', {str(SCRIPT)!r})
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
script.LOCK, script.LOG = pathlib.Path('build/lock'), pathlib.Path('log')
script.set_up = lambda args: script.run('sh', '-c', 'sh -c "echo \\$\\$ > pid; exec sleep 60"; true', cwd='.')
sys.exit(script.main([]))
"""
    process = subprocess.Popen([sys.executable, '-c', program], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    pid = tmp_path / 'pid'
    wait_for(lambda: pid.exists() and pid.read_text().endswith('\n'))
    command = int(pid.read_text())
    yield process, command
    process.kill()
    process.communicate()
    if is_running(command):
        os.kill(command, signal.SIGKILL)


@pytest.mark.parametrize('interruption', [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_running_command(running, interruption):
    process, command = running
    process.send_signal(interruption)
    assert process.communicate(timeout=10)[1] == 'interrupted: the same command continues\n'
    assert process.returncode == 130
    wait_for(lambda: not is_running(command))


def test_a_command_that_outlives_its_set_up_keeps_the_lock(running, tmp_path):
    process, command = running
    process.kill()
    process.wait()
    assert is_running(command)
    with (tmp_path / 'build' / 'lock').open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_interruption_as_a_command_starts_ends_it(monkeypatch, tmp_path):
    started = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)
            signal.raise_signal(signal.SIGINT)

    script = load_script()
    script.LOG = tmp_path / 'log'
    monkeypatch.setattr(script.subprocess, 'Popen', Interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.run('sleep', '60', cwd='.')
    assert started[0].returncode == -signal.SIGINT


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(pid):
    """Whether a process lives; a zombie that nobody waits for does not."""
    status = Path(f'/proc/{pid}/stat')
    return status.exists() and status.read_text().rpartition(')')[2].split()[0] != 'Z'


# Errors: each in one line that says what to do


def test_an_old_python_reads_the_script():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))


def make_python_old(machine):
    machine.monkeypatch.setattr(sys, 'version_info', (3, 9, 2))
    machine.monkeypatch.setattr(machine.script.platform, 'python_version', lambda: '3.9.2')


def remove_module(machine, missing):
    machine.monkeypatch.setattr(machine.script.importlib.util, 'find_spec', lambda name: name != missing)


NO_VENV = 'Python has no venv or ensurepip: install them (Debian: apt-get install python3-venv)'
NO_HEADERS = (
    'Python.h is missing: install the headers of Python (Debian: apt-get install python3-dev); '
    'unpacking them here failed: '
)
ERRORS = {
    'old Python': (make_python_old, 'Python 3.9.2 is too old: run this with Python 3.10 or newer'),
    'no venv': (lambda machine: remove_module(machine, 'venv'), NO_VENV),
    'no ensurepip': (lambda machine: remove_module(machine, 'ensurepip'), NO_VENV),
    'no compiler': (
        lambda machine: (machine.root / 'bin' / 'c++').unlink(),
        'there is no C++ compiler (c++): install one (Debian: apt-get install g++)',
    ),
    'no CXX': (
        lambda machine: machine.monkeypatch.setenv('CXX', 'clang++ -stdlib=libc++'),
        'there is no C++ compiler (clang++)',
    ),
    'no headers': (
        lambda machine: (machine.headers / 'Python.h').unlink(),
        NO_HEADERS + "[Errno 2] No such file or directory: 'apt-get'",
    ),
    'not an environment': (
        lambda machine: (machine.env / 'thesis').mkdir(parents=True),
        'env is not an environment: remove it, or choose another folder with --env',
    ),
    'not writable': (lambda machine: (machine.checkout / 'build').touch(), 'File exists'),
    'silent': (lambda machine: machine.fail_at('-m venv'), 'it failed without a message'),
}


@pytest.mark.parametrize('change, message', ERRORS.values(), ids=ERRORS)
def test_errors(machine, change, message):
    change(machine)
    assert message in machine.error()


UNREACHABLE = 'the package index cannot be reached: check the network, the proxy and the index in "pip config list"'
NO_VERSION = 'ERROR: Could not find a version that satisfies the requirement torch==99 (from versions: '
FAILURES = {
    'no name resolution': (
        UNREACHABLE,
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('Failed to "
        f"establish a new connection: [Errno -2] Name or service not known')': /simple/torch/\n{NO_VERSION}none)",
    ),
    'bad certificate': (
        UNREACHABLE,
        'Could not fetch URL https://index.example/simple/torch/: There was a problem confirming the ssl '
        f'certificate: [SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006) - skipping\n{NO_VERSION}none)',
    ),
    'connection refused': (
        UNREACHABLE,
        "requests.exceptions.ConnectionError: HTTPConnectionPool(host='index.example', port=443): Max "
        'retries exceeded with url: /torch.whl (Caused by NewConnectionError([Errno 111] Connection refused))',
    ),
    'download stalls': (
        UNREACHABLE,
        "urllib3.exceptions.ReadTimeoutError: HTTPConnectionPool(host='index.example', port=443): Read timed out.\n",
    ),
    'connection refused, pip 26': (
        UNREACHABLE,
        'error: connection-failed\n\n× Failed to connect to index.example while fetching '
        'https://index.example/torch.whl\n╰─> [Errno 111] Connection refused',
    ),
    'download breaks off, pip 26': (
        UNREACHABLE,
        'error: incomplete-download\n\n× Download failed after 6 attempts because not enough bytes were '
        'received (1000 bytes/100 kB)\n╰─> URL: https://index.example/torch.whl',
    ),
    'no such version': (
        'No matching distribution found for torch==99',
        f'{NO_VERSION}2.12.0, 2.13.0)\nERROR: No matching distribution found for torch==99',
    ),
    'disk full': (
        'the disk is full: free some space, or choose other disks with --env and TMPDIR',
        'ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device',
    ),
    'compiler error': (
        'compiling failed: /env/torch/python_headers.h:13:10: fatal error: Python.h: No such file',
        '  c++ -MMD -MF a.o.d -Wall -Werror=format-security -c a.cpp -o a.o\n'
        '  /env/torch/python_headers.h:13:10: fatal error: Python.h: No such file or directory\n'
        '  RuntimeError: Error compiling objects for extension\n  ERROR: Failed building wheel for onedl-mmcv',
    ),
    'compiler killed': (
        'the compiler ran out of memory: run it again with MAX_JOBS=1',
        '  c++: fatal error: Killed signal terminated program cc1plus\n  RuntimeError: Error compiling objects',
    ),
    'no CUDA toolkit': (
        'OSError: CUDA_HOME environment variable is not set.',
        '  OSError: CUDA_HOME environment variable is not set.\n  ERROR: Failed building wheel for onedl-mmcv',
    ),
    'forbidden': (
        'HTTP error 403 while getting the package index',
        'ERROR: HTTP error 403 while getting https://index.example/torch.whl',
    ),
    'no import': (
        'error: ImportError: libGL.so.1: cannot open shared object file',
        'Traceback (most recent call last):\nImportError: libGL.so.1: cannot open shared object file',
    ),
    'other': ('error: the last words', 'something\nthe last words\n\n'),
}


@pytest.mark.parametrize('meaning, output', FAILURES.values(), ids=FAILURES)
def test_failures_of_commands(machine, meaning, output):
    machine.fail_at('pip install torch', output)
    error = machine.error()
    assert meaning in error
    assert 'index.example' not in error
    assert error.endswith(f'(all output: {machine.script.LOG})')
    assert machine.script.LOG.read_text() == output
