#!/usr/bin/env python3
"""Make the environment that mmnorm's commands run in: PyTorch, OpenMMLab with its compiled operators, and mmnorm.

It needs Python 3.10 or newer with venv, a C++ compiler and nothing else. Once finished it repeats in no time;
interrupted, it is continued by the same command. mmcv is compiled here: pip keeps the wheel, so that the next
environment takes a minute or two.

Where packages come from is pip's own setting (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, proxies): an index
with PyTorch's CPU build saves several GB of CUDA libraries on a machine without a GPU. With a GPU, name the PyTorch
build with --torch, and set FORCE_CUDA=1 and TORCH_CUDA_ARCH_LIST for the compilation.
"""
# The system's Python runs this before anything is installed: standard library only, and no syntax newer than Python
# 3.6, so that a Python too old for mmnorm can still say so.
import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / 'build' / 'setup_env.lock'
LOG = ROOT / 'build' / 'setup_env.log'

OLDEST_PYTHON = (3, 10)
MMCV = {'onedl': 'onedl-mmcv', 'classic': 'mmcv'}
BUILD_TOOLS = ('ninja', 'packaging', 'psutil', 'setuptools<81', 'wheel')  # setuptools 81 lacks mmcv's pkg_resources
ENVIRONMENT_GB = 3
TEMPORARY_GB = 1

# A wheel of mmcv in pip's cache may have been built without the operators, without CUDA or for another PyTorch.
MMCV_FITS = '''
import torch
from mmcv.ops import get_compiling_cuda_version
assert not torch.cuda.is_available() or get_compiling_cuda_version() != 'not available'
'''

# What the output of a failed command says, the most telling first, and what that means for the user.
CAUSES = (
    (r'No space left on device', 'the disk is full: free some space, or choose other disks with --env and TMPDIR'),
    (r'Killed signal terminated program', 'the compiler ran out of memory: run it again with MAX_JOBS=1'),
    (r'(?m)^ *((?:\S+:\d+|\S*\+\+|collect2): (?:fatal )?error: .*)', 'compiling failed: {}'),
    (r'(?s)(?:Retrying \(|Could not fetch URL).*from versions: none|Max retries exceeded|Read timed out\.$'
     r'|error: (?:connection|incomplete|proxy|ssl)-',
     'the package index cannot be reached: check the network, the proxy and the index in "pip config list"'),
    (r'No matching distribution found for (\S+)',
     f'the package index has no {{}} for Python {platform.python_version()} on {platform.machine()}, or is silent: '
     'check the index in "pip config list"'),
    (r'(?m)^ *(\w*Error: .*)', '{}'),
    (r'(?m)^ *ERROR: (.*)', '{}'),
)


class SetupError(Exception):
    """What was wrong and what to do about it, in one line."""


class CommandError(Exception):
    """A command failed; the message is all that it said."""


def main(argv=None):
    args = parse_args(argv)
    for interruption in (signal.SIGINT, signal.SIGTERM):  # either ends as with Ctrl-C, and the running command with it
        signal.signal(interruption, signal.default_int_handler)
    try:
        with locked(LOCK):
            set_up(args)
    except KeyboardInterrupt:
        print('interrupted: the same command continues', file=sys.stderr)
        return 130
    except (SetupError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


def parse_args(argv):
    summary, _, details = __doc__.partition('\n\n')
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--env', type=Path, default=ROOT / '.venv',
                        help='folder; an environment made here for another set or PyTorch is replaced (default: .venv)')
    parser.add_argument('--set', choices=sorted(MMCV), default='onedl', help='OpenMMLab packages (default: onedl)')
    parser.add_argument('--extras', default='demo,test', help="more of setup.py's extras (default: demo,test)")
    parser.add_argument('--torch', default='torch==2.13.0', help='requirement for PyTorch (default: torch==2.13.0)')
    return parser.parse_args(argv)


def say(line):
    print(line, flush=True)


def check_machine():
    """Find out within a moment what would stop the installation after many minutes."""
    if sys.version_info < OLDEST_PYTHON:
        oldest = '.'.join(map(str, OLDEST_PYTHON))
        raise SetupError(f'Python {platform.python_version()} is too old: run this with a python3 from {oldest} on')
    if not all(importlib.util.find_spec(module) for module in ('venv', 'ensurepip')):
        raise SetupError('Python has no venv or ensurepip: install them (Debian: apt-get install python3-venv)')
    compiler = shlex.split(os.environ.get('CXX', 'c++'))[0]
    if not shutil.which(compiler):
        raise SetupError(f'there is no C++ compiler ({compiler}): install one (Debian: apt-get install g++)')


def check_disk(environment):
    temporary = tempfile.gettempdir()
    for folder, needed, option in (environment, ENVIRONMENT_GB, '--env'), (temporary, TEMPORARY_GB, 'TMPDIR'):
        free = shutil.disk_usage(folder).free / 1e9
        if free < needed:
            raise SetupError(f'{folder} has {free:.1f} GB free, {needed} GB are needed: '
                             f'free some space, or choose another disk with {option}')


@contextlib.contextmanager
def locked(path):
    """Let one set-up at a time write to this folder and its environments."""
    path.parent.mkdir(exist_ok=True)
    with path.open('w') as lock:
        os.set_inheritable(lock.fileno(), True)  # a pip that outlives its killed set-up keeps the next one waiting
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say('another set-up is running here: waiting for it')
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def set_up(args):
    """Run all steps, unless the environment's stamp says that they ran for these arguments and this setup.py."""
    start = time.monotonic()
    env = Environment(args.env.resolve())
    stamp = {
        'folder': str(ROOT),
        'set': args.set,
        'torch': args.torch,
        'extras': args.extras,
        'sources': hashlib.sha256((ROOT / 'setup.py').read_bytes() + Path(__file__).read_bytes()).hexdigest(),
    }
    if env.is_finished(stamp):
        say(f'{env.folder} is ready')
        return

    check_machine()
    LOG.write_bytes(b'')
    mmcv = mmcv_requirement(args.set)
    steps = (
        (f'environment in {env.folder}', lambda: env.create(stamp)),
        (args.torch, lambda: env.pip_install(args.torch)),
        ('build tools', lambda: env.pip_install(*BUILD_TOOLS)),
        (f'{mmcv}: the first time it is compiled, 10 minutes on two cores', lambda: env.build(mmcv)),
        ('mmnorm and all it needs', lambda: env.pip_install('-e', f'.[{args.set},{args.extras}]')),
        ('check that everything imports', lambda: env.check(mmcv)),
    )
    for number, (title, step) in enumerate(steps, 1):
        say(f'[{number}/{len(steps)}] {title}')
        try:
            step()
        except CommandError as error:
            raise SetupError(f'{explain(str(error))} (all output: {LOG})') from error
    env.finish(stamp)
    say(f'{env.folder} is ready after {clock(time.monotonic() - start)}')


def mmcv_requirement(set_name):
    """The pinned mmcv of an OpenMMLab set, as setup.py has it."""
    return re.search(f"'({MMCV[set_name]}==[^']+)'", (ROOT / 'setup.py').read_text()).group(1)


class Environment:
    """A virtual environment with a stamp: a file that says what it was made for and whether it was finished."""

    def __init__(self, folder):
        self.folder = folder
        self.python = folder / 'bin' / 'python'
        self.stamp = folder / 'setup_env.json'

    def is_finished(self, stamp):
        return self.read_stamp() == dict(stamp, finished=True) and self.has_pip()

    def finish(self, stamp):
        self.write_stamp(dict(stamp, finished=True))

    def read_stamp(self):
        try:
            return json.loads(self.stamp.read_text())
        except (OSError, ValueError):
            return {}

    def write_stamp(self, stamp):
        self.stamp.write_text(json.dumps(stamp, indent=4))

    def create(self, stamp):
        """Make the environment, or keep one begun for the same folder, OpenMMLab set and PyTorch.

        Raises:
            SetupError: The folder holds something other than an environment, or its disk is too full.
        """
        begun = self.read_stamp()
        if begun and not (self.has_pip() and all(begun.get(key) == stamp[key] for key in ('folder', 'set', 'torch'))):
            say('      replacing one that is broken or was made for another folder, set or PyTorch')
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(self.folder.iterdir()) and not begun and not (self.folder / 'pyvenv.cfg').exists():
            raise SetupError(f'{self.folder} is not an environment: remove it, or choose another folder with --env')
        self.write_stamp(stamp)
        if not self.has_pip():
            check_disk(self.folder)
            # The path is resolved because this may run in the very environment that was removed above.
            run(Path(sys.executable).resolve(), '-m', 'venv', self.folder)

    def build(self, mmcv, *options):
        """Compile mmcv with its operators against the PyTorch installed here; what mmcv requires comes later."""
        variables = {'MMCV_WITH_OPS': '1', 'MAX_JOBS': os.environ.get('MAX_JOBS', str(len(os.sched_getaffinity(0))))}
        headers = python_headers(self.folder / 'headers')
        if headers:
            variables['CPATH'] = os.pathsep.join(map(str, headers))
        self.pip_install('-v', '--no-deps', '--no-build-isolation', *options, mmcv, **variables)

    def check(self, mmcv):
        """Import everything, after mending the two packages that can be installed and yet not work."""
        if not self.succeeds('-c', 'import cv2'):
            self.install_headless_opencv()
        if not self.succeeds('-c', MMCV_FITS):
            say(f'      the {mmcv} in the cache of pip does not fit: compiling another')
            self.succeeds('-m', 'pip', 'cache', 'remove', mmcv.replace('-', '_').replace('==', '-'))
            self.build(mmcv, '--force-reinstall')
        self.run('-c', 'import cv2, mmcv.ops, mmdet, mmengine, mmseg, pycocotools')

    def install_headless_opencv(self):
        """Install opencv-python-headless over opencv-python: the same module without a desktop's libGL.

        mmcv requires opencv-python by name: it stays installed, so that pip does not bring it back.
        """
        query = "import importlib.metadata as metadata; print(metadata.version('opencv-python'))"
        version = subprocess.check_output([str(self.python), '-c', query], universal_newlines=True).strip()
        self.pip_install('--force-reinstall', '--no-deps', f'opencv-python-headless=={version}')

    def has_pip(self):
        return self.python.exists() and self.succeeds('-c', 'import pip')

    def succeeds(self, *arguments):
        command = [str(self.python), *arguments]
        return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0

    def pip_install(self, *arguments, **variables):
        self.run('-m', 'pip', 'install', *arguments, **variables)

    def run(self, *arguments, **variables):
        path = os.pathsep.join((str(self.python.parent), os.environ['PATH']))  # where mmcv's build looks for ninja
        run(self.python, *arguments, PATH=path, **variables)


def python_headers(folder):
    """Include folders that mmcv's build needs to find Python.h: none where Python has its headers installed.

    Otherwise Debian's package of the headers is unpacked into the given folder, which needs no root.
    """
    if Path(sysconfig.get_config_var('INCLUDEPY'), 'Python.h').exists():
        return []
    version = f'python{sys.version_info[0]}.{sys.version_info[1]}'
    include = folder / 'usr' / 'include'
    if not (include / version / 'Python.h').exists():
        say(f'      Python.h is missing: unpacking lib{version}-dev')
        try:
            unpack_debian_package(f'lib{version}-dev', folder)
        except (CommandError, FileNotFoundError) as error:
            raise SetupError('Python.h is missing: install the headers of Python (Debian: apt-get install python3-dev)'
                             f'; unpacking them here failed: {explain(str(error))}') from error
    return [include, include / version]


def unpack_debian_package(package, folder):
    """Download a package and unpack it, with package lists of our own: a fresh machine may have none."""
    with tempfile.TemporaryDirectory() as scratch:
        apt = ('apt-get', '-o', f'Dir::State={scratch}', '-o', f'Dir::Cache={scratch}', '-o', 'Acquire::Languages=none')
        run(*apt, 'update', cwd=scratch)
        run(*apt, 'download', package, cwd=scratch)
        run('dpkg', '-x', *Path(scratch).glob('*.deb'), folder)


def run(*command, cwd=ROOT, **variables):
    """Run a command with its output in the log and its progress shown.

    Raises:
        CommandError: It failed.
    """
    with LOG.open('ab') as log:
        start = log.tell()
        process = subprocess.Popen(
            list(map(str, command)), cwd=str(cwd), env=dict(os.environ, **variables), stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, close_fds=False, start_new_session=True)
    progress = Progress()
    try:
        while process.returncode is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            progress.show(last_activity(log_from(start)))
    finally:
        progress.clear()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)  # the compilers too; pip then removes its temporary files
            process.wait()
    if process.returncode:
        raise CommandError(log_from(start) or f'{command[0]} ended with code {process.returncode} and said nothing')


def log_from(position):
    return LOG.read_bytes()[position:].decode(errors='replace')


class Progress:
    """One line about a running command: rewritten every second on a terminal, written every half minute elsewhere."""

    PAUSE = 30

    def __init__(self):
        self.start = self.written = time.monotonic()
        self.on_terminal = sys.stdout.isatty()

    def show(self, activity):
        now = time.monotonic()
        line = f'      {clock(now - self.start)}  {activity}'
        if self.on_terminal:
            print(f'\r\033[K{line[:shutil.get_terminal_size().columns - 1]}', end='', flush=True)
        elif now - self.written >= self.PAUSE:
            self.written = now
            say(line)

    def clear(self):
        if self.on_terminal:
            print('\r\033[K', end='', flush=True)


def clock(seconds):
    return '{}:{:02d}'.format(*divmod(int(seconds), 60))


def last_activity(output):
    """What pip, or the ninja that it runs, does according to its output so far."""
    activities = re.findall(r'(?m)^ *(?:\[(\d+)/(\d+)\] |((?:Collecting|Downloading|Building|Installing) .*))', output)
    if not activities:
        return ''
    done, files, doing = activities[-1]
    if files:
        return f'compiled {done} of {files} files'
    return re.sub(r'\S+/', '', doing).partition(':')[0]  # 'Installing collected packages: a, b', a URL's last part


def explain(output):
    """The cause of a failure, in one line, from the output of the command that failed."""
    for pattern, meaning in CAUSES:
        matches = list(re.finditer(pattern, output))
        if matches:
            return re.sub(r'https?://\S+', 'the package index', meaning.format(*matches[-1].groups()))
    return output.strip().rpartition('\n')[2]


if __name__ == '__main__':
    sys.exit(main())
