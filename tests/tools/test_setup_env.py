"""tools/setup_env.py, without a network: Python and pip are a shell script that notes what it is asked to do."""
import ast
import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / 'tools' / 'setup_env.py'
PYTHON_NAME = f'python{sys.version_info[0]}.{sys.version_info[1]}'

# Notes its command lines in $CALLS and the environment of mmcv's build in $BUILD. `-m venv FOLDER` makes an environment
# with itself as Python; a command line that contains $FAIL_AT prints the file $FAILURE and fails.
PYTHON = '''#!/bin/sh
echo $* >> "$CALLS"
case "$*" in
*"$FAIL_AT"*) cat "$FAILURE"; exit 1 ;;
'-m venv '*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
*metadata*) echo 4.12.0.88 ;;
*--no-build-isolation*) env > "$BUILD" ;;
esac
'''
APT_GET = '''#!/bin/sh
case "$*" in *download*) echo > python.deb ;; esac
'''
DPKG = f'''#!/bin/sh
mkdir -p "$3/usr/include/{PYTHON_NAME}"
echo > "$3/usr/include/{PYTHON_NAME}/Python.h"
'''


def load_script():
    spec = importlib.util.spec_from_file_location('setup_env', SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


class Machine:
    """A machine with nothing but the stub above, a compiler and the headers of Python."""

    def __init__(self, root, monkeypatch, capsys):
        self.script = load_script()
        self.root, self.monkeypatch, self.capsys = root, monkeypatch, capsys
        self.checkout, self.env, self.headers = root / 'checkout', root / 'env', root / 'headers'
        self.log = self.checkout / 'build' / 'setup_env.log'
        for folder in (self.checkout, self.headers, root / 'bin'):
            folder.mkdir()
        shutil.copy(SCRIPT.parents[1] / 'setup.py', self.checkout)
        (self.headers / 'Python.h').touch()
        for tool in ('cat', 'cp', 'env', 'mkdir'):
            (root / 'bin' / tool).symlink_to(shutil.which(tool))
        self.add_program('c++', '')
        self.add_program('python', PYTHON)

        monkeypatch.setattr(self.script, 'ROOT', self.checkout)
        monkeypatch.setattr(self.script, 'LOCK', self.checkout / 'build' / 'setup_env.lock')
        monkeypatch.setattr(self.script, 'LOG', self.log)
        monkeypatch.setattr(self.script.sysconfig, 'get_config_var', lambda name: str(self.headers))
        monkeypatch.setattr(sys, 'executable', str(root / 'bin' / 'python'))
        monkeypatch.delenv('CXX', raising=False)
        monkeypatch.delenv('MAX_JOBS', raising=False)
        monkeypatch.setenv('PATH', str(root / 'bin'))
        for name in ('CALLS', 'BUILD', 'FAILURE'):
            monkeypatch.setenv(name, str(root / name))
        self.fail_at('nothing')

    def add_program(self, name, text):
        (self.root / 'bin' / name).write_text(text)
        (self.root / 'bin' / name).chmod(0o755)

    def fail_at(self, command, output=''):
        self.monkeypatch.setenv('FAIL_AT', command)
        (self.root / 'FAILURE').write_text(output)

    def set_up(self, *arguments):
        """Run it; return its exit code and the commands that it ran."""
        (self.root / 'CALLS').write_text('')
        code = self.script.main(['--env', str(self.env), *arguments])
        return code, (self.root / 'CALLS').read_text().splitlines()

    def error(self, *arguments):
        """Run what fails; return the one line that it writes on stderr."""
        code, _ = self.set_up(*arguments)
        errors = self.capsys.readouterr().err
        assert code == 1
        assert errors.startswith('error: ') and errors.count('\n') == 1
        return errors.strip()

    def build_variables(self):
        return dict(line.split('=', 1) for line in (self.root / 'BUILD').read_text().splitlines())


@pytest.fixture
def machine(tmp_path, monkeypatch, capsys):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Machine(tmp_path, monkeypatch, capsys)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def pip_installs(calls):
    return [call.replace('-m pip install ', '') for call in calls if call.startswith('-m pip install ')]


# The steps


def test_the_steps_in_order(machine):
    code, calls = machine.set_up()
    assert code == 0
    assert calls[0] == f'-m venv {machine.env}'
    assert pip_installs(calls) == [
        'torch==2.13.0',  # alone, so that nothing else chooses the PyTorch
        'ninja packaging psutil setuptools<81 wheel',
        '-v --no-deps --no-build-isolation onedl-mmcv==2.3.6',
        '-e .[onedl,demo,test]',
    ]
    assert calls[-1].startswith('-c import cv2, mmcv.ops, mmdet')
    steps = [line for line in machine.capsys.readouterr().out.splitlines() if line.startswith('[')]
    assert [step[:5] for step in steps] == [f'[{n}/6]' for n in range(1, 7)]


def test_arguments_choose_the_packages(machine):
    _, calls = machine.set_up('--set', 'classic', '--extras', 'report', '--torch', 'torch==2.5.1')
    installs = pip_installs(calls)
    assert installs[0] == 'torch==2.5.1'
    assert installs[2].endswith(' mmcv==2.1.0')
    assert installs[3] == '-e .[classic,report]'


def test_mmcv_is_built_with_operators_on_all_cores(machine):
    machine.set_up()
    variables = machine.build_variables()
    assert variables['MMCV_WITH_OPS'] == '1'
    assert variables['MAX_JOBS'] == str(len(os.sched_getaffinity(0)))
    assert variables['PATH'].split(':')[0] == str(machine.env / 'bin')  # the environment's ninja


def test_missing_headers_are_unpacked_into_the_environment(machine):
    (machine.headers / 'Python.h').unlink()
    machine.add_program('apt-get', APT_GET)
    machine.add_program('dpkg', DPKG)
    code, _ = machine.set_up()
    assert code == 0
    include = machine.env / 'headers' / 'usr' / 'include'
    assert machine.build_variables()['CPATH'] == f'{include}:{include / PYTHON_NAME}'


def test_opencv_that_needs_a_desktop_is_overlaid(machine):
    machine.fail_at('-c import cv2')
    _, calls = machine.set_up()
    assert '--force-reinstall --no-deps opencv-python-headless==4.12.0.88' in pip_installs(calls)


def test_mmcv_of_another_torch_is_rebuilt(machine):
    machine.fail_at('get_compiling_cuda_version')
    _, calls = machine.set_up()
    removal = calls.index('-m pip cache remove onedl_mmcv-2.3.6')
    rebuild = '-m pip install -v --no-deps --no-build-isolation --force-reinstall onedl-mmcv==2.3.6'
    assert calls[removal + 1] == rebuild


# Repetition


def test_a_finished_environment_is_left_alone(machine):
    machine.set_up()
    code, calls = machine.set_up()
    assert code == 0
    assert calls == ['-c import pip']
    assert machine.capsys.readouterr().out.endswith(f'{machine.env} is ready\n')


def test_other_extras_update_the_environment(machine):
    machine.set_up()
    assert_updates(machine, '--extras', 'report')


def test_a_changed_setup_py_updates_the_environment(machine):
    machine.set_up()
    (machine.checkout / 'setup.py').write_text("'onedl-mmcv==2.4.0'")
    assert_updates(machine)


def test_a_changed_script_updates_the_environment(machine):
    machine.set_up()
    machine.script.__file__ = __file__
    assert_updates(machine)


def test_a_failed_set_up_is_continued(machine):
    machine.fail_at('onedl-mmcv', 'the first failure')
    machine.error()
    machine.fail_at('nothing')
    assert_updates(machine)
    assert 'the first failure' not in machine.log.read_text()


def test_an_environment_of_other_making_is_completed(machine):
    machine.set_up()
    (machine.env / 'setup_env.json').unlink()
    (machine.env / 'pyvenv.cfg').touch()
    assert_updates(machine)


def test_a_truncated_stamp_is_no_obstacle(machine):
    machine.set_up()
    (machine.env / 'setup_env.json').write_text('{"folder": ')
    (machine.env / 'pyvenv.cfg').touch()
    assert_updates(machine)


def assert_updates(machine, *arguments):
    """Assert that everything is installed into the environment that is there."""
    code, calls = machine.set_up(*arguments)
    assert code == 0
    assert len(pip_installs(calls)) == 4
    assert not [call for call in calls if 'venv' in call]


@pytest.mark.parametrize('arguments', [['--torch', 'torch==2.5.1'], ['--set', 'classic']], ids=['torch', 'set'])
def test_another_base_remakes_the_environment(machine, arguments):
    machine.set_up()
    (machine.env / 'old').touch()
    _, calls = machine.set_up(*arguments)
    assert f'-m venv {machine.env}' in calls
    assert not (machine.env / 'old').exists()


def test_an_environment_without_its_python_is_remade(machine):
    machine.set_up()
    (machine.env / 'bin' / 'python').unlink()
    _, calls = machine.set_up()
    assert calls[0] == f'-m venv {machine.env}'


def test_two_set_ups_take_turns(tmp_path):
    script = load_script()
    lock = tmp_path / 'build' / 'lock'
    order = []

    def second():
        with script.locked(lock):
            order.append('second')

    thread = threading.Thread(target=second)
    with script.locked(lock):
        thread.start()
        thread.join(timeout=0.3)
        order.append('first')
    thread.join(timeout=10)
    assert order == ['first', 'second']


@pytest.fixture
def running(tmp_path):
    """A set-up in a process of its own, within a command that takes long; and the pid of that command's child."""
    program = f'''
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location('setup_env', {str(SCRIPT)!r})
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
script.LOCK, script.LOG = pathlib.Path('build/lock'), pathlib.Path('log')
script.set_up = lambda args: script.run('sh', '-c', 'sh -c "echo \\$\\$ > pid; exec sleep 60"; true', cwd='.')
sys.exit(script.main([]))
'''
    process = subprocess.Popen([sys.executable, '-c', program], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    pid = tmp_path / 'pid'
    wait_for(lambda: pid.exists() and pid.read_text().endswith('\n'))
    command = int(pid.read_text())
    yield process, command
    process.kill()
    process.communicate()
    if is_running(command):
        os.kill(command, signal.SIGKILL)


def test_termination_ends_the_running_command(running):
    process, command = running
    process.terminate()
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


def test_python_too_old(machine, monkeypatch):
    monkeypatch.setattr(sys, 'version_info', (3, 9, 2))
    monkeypatch.setattr(machine.script.platform, 'python_version', lambda: '3.9.2')
    assert 'Python 3.9.2 is too old: run this with a python3 from 3.10 on' in machine.error()


def test_an_old_python_reads_the_script():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))


@pytest.mark.parametrize('missing', ['venv', 'ensurepip'])
def test_no_venv(machine, monkeypatch, missing):
    monkeypatch.setattr(machine.script.importlib.util, 'find_spec', lambda name: name != missing)
    assert 'Python has no venv or ensurepip: install them (Debian: apt-get install python3-venv)' in machine.error()


def test_no_compiler(machine):
    (machine.root / 'bin' / 'c++').unlink()
    assert 'there is no C++ compiler (c++): install one (Debian: apt-get install g++)' in machine.error()


def test_the_compiler_that_cxx_names(machine, monkeypatch):
    monkeypatch.setenv('CXX', 'clang++ -stdlib=libc++')
    assert 'there is no C++ compiler (clang++)' in machine.error()


def test_no_headers(machine):
    (machine.headers / 'Python.h').unlink()
    advice = 'Python.h is missing: install the headers of Python (Debian: apt-get install python3-dev)'
    assert f"{advice}; unpacking them here failed: [Errno 2] No such file or directory: 'apt-get'" in machine.error()
    machine.add_program('apt-get', '#!/bin/sh\necho E: No network\nexit 100\n')
    assert f'{advice}; unpacking them here failed: E: No network' in machine.error()


@pytest.mark.parametrize('full, advice', [
    ('env', 'env has 1.5 GB free, 3 GB are needed: free some space, or choose another disk with --env'),
    ('tmp', 'tmp has 0.5 GB free, 1 GB are needed: free some space, or choose another disk with TMPDIR'),
])
def test_too_little_disk(machine, monkeypatch, full, advice):
    free = {'env': 1e11, 'tmp': 1e11, full: 1.5e9 if full == 'env' else 0.5e9}
    monkeypatch.setattr(machine.script.tempfile, 'gettempdir', lambda: '/tmp')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=free[Path(path).name]))
    assert advice in machine.error()


def test_a_folder_that_is_no_environment_is_kept(machine):
    machine.env.mkdir()
    (machine.env / 'thesis.tex').touch()
    assert 'env is not an environment: remove it, or choose another folder with --env' in machine.error()
    assert (machine.env / 'thesis.tex').exists()


def test_a_folder_that_cannot_be_written(machine):
    (machine.checkout / 'build').touch()
    assert 'File exists' in machine.error()


UNREACHABLE = 'the package index cannot be reached: check the network, the proxy and the index in "pip config list"'
FAILURES = {
    'no name resolution': (UNREACHABLE, '''\
Looking in indexes: https://index.example/simple
WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken by \
'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f34e77274d0>: Failed to establish a \
new connection: [Errno -2] Name or service not known')': /simple/torch/
ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)
ERROR: No matching distribution found for torch==2.13.0
'''),
    'bad certificate': (UNREACHABLE, '''\
Could not fetch URL https://index.example/simple/torch/: There was a problem confirming the ssl certificate: \
[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006) - skipping
ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)
ERROR: No matching distribution found for torch==2.13.0
'''),
    'connection refused': (UNREACHABLE, '''\
    raise ConnectionError(e, request=request)
pip._vendor.requests.exceptions.ConnectionError: HTTPConnectionPool(host='index.example', port=443): Max retries \
exceeded with url: /torch.whl (Caused by NewConnectionError('<pip._vendor.urllib3.connection.HTTPConnection object at \
0x7f97867d4710>: Failed to establish a new connection: [Errno 111] Connection refused'))
'''),
    'download stalls': (UNREACHABLE, '''\
    raise ReadTimeoutError(self._pool, None, "Read timed out.")
pip._vendor.urllib3.exceptions.ReadTimeoutError: HTTPConnectionPool(host='index.example', port=443): Read timed out.
'''),
    'connection refused, pip 26': (UNREACHABLE, '''\
error: connection-failed

× Failed to connect to index.example while fetching https://index.example/torch.whl
╰─> [Errno 111] Connection refused

hint: Are you connected to the Internet?
'''),
    'download breaks off, pip 26': (UNREACHABLE, '''\
error: incomplete-download

× Download failed after 6 attempts because not enough bytes were received (1000 bytes/100 kB)
╰─> URL: https://index.example/torch.whl
'''),
    'no such version': (f'the package index has no torch==99 for Python {sys.version.split()[0]} on ', '''\
ERROR: Could not find a version that satisfies the requirement torch==99 (from versions: 2.12.0, 2.13.0)
ERROR: No matching distribution found for torch==99
'''),
    'disk full': ('the disk is full: free some space, or choose other disks with --env and TMPDIR', '''\
ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device
'''),
    'compiler error': ('compiling failed: /env/torch/csrc/python_headers.h:13:10: fatal error: Python.h: No such', '''\
  [2/2] c++ -MMD -MF a.o.d -Wall -Werror=format-security -c a.cpp -o a.o
  FAILED: [code=1] a.o
  c++ -MMD -MF a.o.d -Wall -Werror=format-security -c a.cpp -o a.o
  In file included from a.cpp:1:
  /env/torch/csrc/python_headers.h:13:10: fatal error: Python.h: No such file or directory
     13 | #include <Python.h>
        |          ^~~~~~~~~~
  compilation terminated.
  ninja: build stopped: subcommand failed.
  RuntimeError: Error compiling objects for extension
  error: subprocess-exited-with-error
  ERROR: Failed building wheel for onedl-mmcv
'''),
    'compiler killed': ('the compiler ran out of memory: run it again with MAX_JOBS=1', '''\
  c++: fatal error: Killed signal terminated program cc1plus
  compilation terminated.
  RuntimeError: Error compiling objects for extension
'''),
    'no CUDA toolkit': ('CUDA_HOME environment variable is not set. Please set it to your CUDA install root.', '''\
  OSError: CUDA_HOME environment variable is not set. Please set it to your CUDA install root.
  error: subprocess-exited-with-error
  ERROR: Failed building wheel for onedl-mmcv
'''),
    'forbidden': ('HTTP error 403 while getting the package index', '''\
ERROR: HTTP error 403 while getting https://index.example/torch.whl
'''),
    'other': ('Invalid requirement: ', '''\
ERROR: Invalid requirement: 'torch=2.13.0': Expected end or semicolon
Hint: = is not a valid operator. Did you mean == ?
'''),
}


@pytest.mark.parametrize('meaning, output', FAILURES.values(), ids=FAILURES)
def test_failures_of_pip(machine, meaning, output):
    machine.fail_at('pip install torch', output)
    error = machine.error()
    assert meaning in error
    assert 'index.example' not in error
    assert error.endswith(f'(all output: {machine.log})')
    assert machine.log.read_text() == output


def test_a_command_that_says_nothing(machine):
    machine.fail_at('-m venv')
    assert 'python ended with code 1 and said nothing' in machine.error()


def test_a_module_that_does_not_import(machine):
    machine.fail_at('-c import cv2, mmcv.ops', '''\
Traceback (most recent call last):
  File "<string>", line 1, in <module>
ImportError: libGL.so.1: cannot open shared object file: No such file or directory
''')
    assert 'ImportError: libGL.so.1: cannot open shared object file' in machine.error()


# Progress


def test_last_activity():
    last_activity = load_script().last_activity
    downloading = '''\
Looking in indexes: https://index.example/simple
Collecting torch==2.13.0
  Downloading https://index.example/torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (191.8 MB)
'''
    building = '''\
  Building wheel for onedl-mmcv (pyproject.toml): started
  Running command Building wheel for onedl-mmcv (pyproject.toml)
'''
    compiling = '''\
  [1/78] c++ -MMD -MF build/mmcv/ops/csrc/pytorch/active_rotated_filter.o.d -Wsign-compare -DNDEBUG -g -fwrapv -O2
  [2/78] c++ -MMD -MF build/mmcv/ops/csrc/pytorch/assign_score_withk.o.d -Wsign-compare -DNDEBUG -g -fwrapv -O2
  In file included from torch/include/c10/core/InferenceMode.h:4,
     89 |   bool view_replay_enabled_ : 1 = false;
'''
    installing = '''\
Installing collected packages: mpmath, typing-extensions, sympy, torch
'''
    assert last_activity('') == ''
    assert last_activity(downloading) == 'Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (191.8 MB)'
    assert last_activity(downloading + building) == 'Building wheel for onedl-mmcv (pyproject.toml)'
    assert last_activity(building + compiling) == 'compiled 2 of 78 files'
    assert last_activity(compiling + installing) == 'Installing collected packages'


def test_progress_is_rare_in_a_log_and_one_line_on_a_terminal(monkeypatch, capsys):
    script = load_script()
    seconds = iter(range(1000))
    monkeypatch.setattr(script, 'time', SimpleNamespace(monotonic=lambda: next(seconds)))
    progress = script.Progress()
    for done in range(70):
        progress.show(f'compiled {done} of 78 files')
    progress.clear()
    assert capsys.readouterr().out == '      0:30  compiled 29 of 78 files\n      1:00  compiled 59 of 78 files\n'

    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    monkeypatch.setenv('COLUMNS', '30')
    progress = script.Progress()
    progress.show('Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl')
    progress.clear()
    assert capsys.readouterr().out == '\r\033[K      0:01  Downloading torch\r\033[K'
