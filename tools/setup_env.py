#!/usr/bin/env python3
"""Make the environment that mmnorm's commands run in: PyTorch, OpenMMLab with its compiled operators, and mmnorm.

It needs Python 3.10 or newer with venv, a C++ compiler and nothing else. Run again once finished, it ends at once;
after an interruption, the same command continues. mmcv is compiled here against the PyTorch installed; its wheel is
kept in pip's cache folder for the next environment.

Where packages come from is pip's own setting (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, proxies): an index
with PyTorch's CPU build saves several GB of CUDA libraries on a machine without a GPU. With a GPU, name the PyTorch
build with --torch, and set FORCE_CUDA=1 and TORCH_CUDA_ARCH_LIST for the compilation.
"""

# The system's Python runs this before anything is installed: standard library only, and no syntax newer than Python
# 3.6, so that a Python too old for mmnorm can still say so.
import argparse
import contextlib
import fcntl
import functools
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / 'build' / 'setup_env.lock'
LOG = ROOT / 'build' / 'setup_env.log'

INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)
MMCV = {'onedl': 'onedl-mmcv', 'classic': 'mmcv'}
# On a CPU: the last that any PyTorch loads, and mmpretrain needs no more. PyPI's newer wheels are linked to CUDA.
TORCHVISION = 'torchvision==0.16.2'
BUILD_TOOLS = ('ninja', 'packaging', 'psutil', 'setuptools<81', 'wheel')  # setuptools 81 lacks mmcv's pkg_resources

# What mmcv is compiled against: the PyTorch, and a GPU under the same conditions as in mmcv's setup.py.
TARGET = """
import os, torch
gpu = torch.version.hip or torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1'
print(f'torch-{torch.__version__}-for-' + ('gpu' if gpu else 'cpu'))
"""
# A wheel may have been built without the operators, without CUDA or for another PyTorch.
MMCV_FITS = """
import torch
from mmcv.ops import get_compiling_cuda_version
assert not torch.cuda.is_available() or get_compiling_cuda_version() != 'not available'
"""
OPENCV_VERSION = "import importlib.metadata; print(importlib.metadata.version('opencv-python'))"

# What the output of a failed command says, the most telling first, and what that means for the user.
CAUSES = (
    (r'No space left on device', 'the disk is full: free some space, or choose other disks with --env and TMPDIR'),
    (r'Killed signal terminated program', 'the compiler ran out of memory: run it again with MAX_JOBS=1'),
    (r'(?m)^ *((?:\S+:\d+|\S*\+\+|collect2): (?:fatal )?error: .*)', 'compiling failed: {}'),
    (
        r'(?s)(?:Retrying \(|Could not fetch URL).*from versions: none|Max retries exceeded|Read timed out\.$'
        r'|error: (?:connection|incomplete|proxy|ssl)-',
        'the package index cannot be reached: check the network, the proxy and the index in "pip config list"',
    ),
    (r'(?m)^ *(?:ERROR: )?(\w*Error: .*)', '{}'),
    (r'(?m)^ *ERROR: (.*)', '{}'),
    (r'(.+)\s*\Z', '{}'),
    ('', 'it failed without a message'),
)


class SetupError(Exception):
    """What was wrong and what to do about it, in one line."""


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--env',
        type=Path,
        default=ROOT / '.venv',
        help='folder; an environment made here for another set or PyTorch is replaced (default: .venv)',
    )
    parser.add_argument('--set', choices=sorted(MMCV), default='onedl', help='OpenMMLab packages (default: onedl)')
    parser.add_argument('--extras', default='demo,test,lint', help="more of setup.py's extras (default: %(default)s)")
    parser.add_argument('--torch', default='torch==2.13.0', help='requirement for PyTorch (default: torch==2.13.0)')
    args = parser.parse_args(argv)
    for interruption in INTERRUPTIONS:  # either ends as with Ctrl-C, and the running command with it
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
    env = Environment(args.env.resolve())
    setup_py = (ROOT / 'setup.py').read_bytes()
    stamp = {
        'folder': str(ROOT),
        'set': args.set,
        'torch': args.torch,
        'extras': args.extras,
        'sources': hashlib.sha256(setup_py + Path(__file__).read_bytes()).hexdigest(),
    }
    if env.read_stamp() != dict(stamp, finished=True) or not env.works():
        check_machine()
        LOG.write_bytes(b'')
        mmcv = re.search(f"'({MMCV[args.set]}==[^']+)'", setup_py.decode()).group(1)
        say(f'[1/6] environment in {env.folder} (all output: {LOG})')
        env.create(stamp)
        say(f'[2/6] {args.torch}')
        env.pip('install', args.torch)  # alone, so that nothing else chooses it
        say('[3/6] build tools')
        env.pip('install', *BUILD_TOOLS)
        say(f'[4/6] {mmcv}: the first time it is compiled, 2 minutes on two cores')
        env.install_mmcv(mmcv)
        say('[5/6] mmnorm and all it needs')
        hosts = args.set
        if env.install_torchvision(args.torch):
            hosts += f',{args.set}-pretrain'
        env.pip('install', args.torch, '-e', f'.[{hosts},{args.extras}]')  # named again, lest pip take another
        say('[6/6] check that everything imports')
        env.check(mmcv)
        env.write_stamp(dict(stamp, finished=True))
    say(f'{env.folder} is ready')


def check_machine():
    """Find out within a moment what would stop the installation after minutes."""
    if sys.version_info < (3, 10):
        raise SetupError(f'Python {platform.python_version()} is too old: run this with Python 3.10 or newer')
    if not all(importlib.util.find_spec(module) for module in ('venv', 'ensurepip')):
        raise SetupError('Python has no venv or ensurepip: install them (Debian: apt-get install python3-venv)')
    compiler = shlex.split(os.environ.get('CXX', 'c++'))[0]
    if not shutil.which(compiler):
        raise SetupError(f'there is no C++ compiler ({compiler}): install one (Debian: apt-get install g++)')


class Environment:
    """A virtual environment with a stamp: a file that says what it was made for and whether it was finished."""

    def __init__(self, folder):
        self.folder = folder
        self.python = folder / 'bin' / 'python'
        self.stamp = folder / 'setup_env.json'

    def read_stamp(self):
        try:
            return json.loads(self.stamp.read_text())
        except (OSError, ValueError):
            return {}

    def write_stamp(self, stamp):
        self.stamp.write_text(json.dumps(stamp, indent=4))

    def create(self, stamp):
        """Make the environment, or keep one that works, unless it was made for another folder, set or PyTorch.

        That of another checkout, which would lose it, is not touched, unless it is in this one.
        """
        begun = self.read_stamp()
        if not begun and not (self.folder / 'pyvenv.cfg').exists() and self.folder.exists() and os.listdir(self.folder):
            raise SetupError(f'{self.folder} is not an environment: remove it, or choose another folder with --env')
        owner = Path(begun.get('folder', ROOT))
        elsewhere = ROOT not in self.folder.parents  # .venv may be a link
        if elsewhere and owner != ROOT and (owner / 'setup.py').exists():
            raise SetupError(f'{self.folder} is the environment of {owner}: remove it, or choose another with --env')
        if not self.works() or any(begun.get(key, stamp[key]) != stamp[key] for key in ('folder', 'set', 'torch')):
            # The path is resolved because this may run in the very environment that is cleared.
            run(Path(sys.executable).resolve(), '-m', 'venv', *['--clear'] * bool(begun), self.folder)
        self.write_stamp(stamp)

    def install_mmcv(self, mmcv):
        """Install a wheel that was kept or that pip's index has, else compile one; what it requires comes later."""
        kept = self.kept_wheels()
        try:
            self.pip('install', '--no-deps', '--only-binary', ':all:', '--find-links', kept, mmcv)
        except SetupError:
            self.compile_mmcv(mmcv, kept, merged=kept.name.endswith('cpu'))

    def kept_wheels(self):
        """The folder of wheels compiled for this PyTorch, of which pip chooses by version, Python and platform."""
        cache = self.output('-m', 'pip', 'cache', 'dir') or ROOT / 'build'  # pip may have been told to cache nothing
        return Path(cache, 'mmnorm', self.output('-c', TARGET))

    def compile_mmcv(self, mmcv, kept, merged):
        """Compile mmcv with its operators against the PyTorch installed here; install the wheel and keep it."""
        variables = {
            'MMCV_WITH_OPS': '1',
            'MAX_JOBS': os.environ.get('MAX_JOBS', str(len(os.sched_getaffinity(0)))),
            # No debug information, which takes a third of the time. setuptools lets CFLAGS replace Python's own flags:
            # without those nothing would be optimized.
            'CFLAGS': ' '.join((sysconfig.get_config_var('CFLAGS'), os.environ.get('CFLAGS', ''), '-g0')),
        }
        if not Path(sysconfig.get_config_var('INCLUDEPY'), 'Python.h').exists():
            variables['CPATH'] = unpacked_headers(self.folder / 'headers')
        options = ('--no-deps', '--no-build-isolation')
        with tempfile.TemporaryDirectory() as scratch:
            self.pip('download', *options, '--no-binary', ':all:', '-d', scratch, mmcv)
            (archive,) = Path(scratch).iterdir()
            shutil.unpack_archive(archive, scratch)
            (source,) = (path for path in Path(scratch).iterdir() if path.is_dir())
            if merged:
                merge_dispatchers(source)
            try:
                self.pip('wheel', '-v', '--no-cache-dir', *options, '-w', scratch, source, **variables)
            except SetupError:
                if not merged:
                    raise
                say('      compiling file by file')
                return self.compile_mmcv(mmcv, kept, merged=False)
            (wheel,) = Path(scratch).glob('*.whl')
            self.pip('install', '--no-deps', '--force-reinstall', wheel)
            kept.mkdir(parents=True, exist_ok=True)
            part = shutil.copy(wheel, kept / f'{wheel.name}.part')
            part.replace(kept / wheel.name)  # a wheel that is there is whole

    def install_torchvision(self, torch):
        """Install a torchvision that works beside this PyTorch, as mmpretrain needs; False if this Python has none."""
        on_cpu = self.output('-c', TARGET).endswith('cpu')
        try:
            self.pip('install', *['--no-deps', TORCHVISION] if on_cpu else [torch, 'torchvision'])
        except SetupError as error:
            # pip's other word for it, where its own constraints name torchvision
            if not re.search('No matching distribution|ResolutionImpossible', str(error)):
                raise
            say('      no torchvision fits this PyTorch and Python: mmpretrain, to pretrain with, is left out')
            return False
        return True

    def check(self, mmcv):
        """Import everything, after mending the two packages that can be installed and yet not work."""
        if self.output('-c', 'import cv2') is None:
            # The same module without a desktop's libGL; mmcv requires opencv-python by name: that one stays installed.
            headless = 'opencv-python-headless==' + self.output('-c', OPENCV_VERSION)
            self.pip('install', '--force-reinstall', '--no-deps', headless)
        if self.output('-c', MMCV_FITS) is None:
            say(f'      the wheel of {mmcv} does not fit: compiling another')
            self.compile_mmcv(mmcv, self.kept_wheels(), merged=False)
        run(self.python, '-c', 'import cv2, mmcv.ops, mmdet, mmengine, mmseg, pycocotools')

    def works(self):
        return self.python.exists() and self.output('-c', 'import pip') is not None

    def output(self, *arguments):
        """What this environment's Python prints, or None where it fails."""
        done = subprocess.run(
            [str(self.python), *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True
        )
        return None if done.returncode else done.stdout.strip()

    def pip(self, *arguments, **variables):
        path = os.pathsep.join((str(self.python.parent), os.environ['PATH']))  # where mmcv's build looks for ninja
        run(self.python, '-m', 'pip', *arguments, PATH=path, **variables)


def merge_dispatchers(source):
    """Compile mmcv's 57 small files that register operators as one: of the 6 s of each, 5 go to PyTorch's headers."""
    folder = source / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
    files = sorted(file for file in folder.glob('*.cpp') if file.name != 'pybind.cpp')
    for file in files:
        file.rename(file.with_suffix('.inc'))  # mmcv's setup.py takes all *.cpp
    (folder / 'dispatchers.cpp').write_text(''.join(f'#include "{file.stem}.inc"\n' for file in files))


def unpacked_headers(folder):
    """Debian's headers of Python, unpacked into a folder, which needs no root: what the compiler has to search."""
    version = f'python{sys.version_info[0]}.{sys.version_info[1]}'
    include = folder / 'usr' / 'include'
    if not (include / version / 'Python.h').exists():
        say(f'      Python.h is missing: unpacking lib{version}-dev')
        try:
            with tempfile.TemporaryDirectory() as scratch:  # with package lists of our own: a fresh machine has none
                apt = f'apt-get -o Dir::State={scratch} -o Dir::Cache={scratch} -o Acquire::Languages=none'.split()
                run(*apt, 'update', cwd=scratch)
                run(*apt, 'download', f'lib{version}-dev', cwd=scratch)
                run('dpkg', '-x', *Path(scratch).glob('*.deb'), folder)
        except (SetupError, FileNotFoundError) as error:
            raise SetupError(
                'Python.h is missing: install the headers of Python (Debian: apt-get install python3-dev)'
                f'; unpacking them here failed: {error}'
            ) from error
    return f'{include}:{include / version}'


def run(*command, cwd=ROOT, **variables):
    """Run a command with its output in the log, and a sign of life every minute.

    Raises:
        SetupError: It failed; the message is the cause.
    """
    process = None
    try:
        # an interruption does not come between the start of a command and the name by which it is ended
        with LOG.open('ab') as log, held_back(INTERRUPTIONS) as let_through:
            start = log.tell()
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                close_fds=False,
                start_new_session=True,
                preexec_fn=let_through,
            )
        while process.returncode is None:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                say('      still working')
    except KeyboardInterrupt:
        if process:
            os.killpg(process.pid, signal.SIGINT)  # the compilers too; pip then removes its temporary files
            process.wait()
        raise
    if process.returncode:
        output = LOG.read_bytes()[start:].decode(errors='replace')
        matches = ((list(re.finditer(pattern, output)), meaning) for pattern, meaning in CAUSES)
        cause = next(meaning.format(*found[-1].groups()) for found, meaning in matches if found)
        raise SetupError(re.sub(r'https?://\S+', 'the package index', cause) + f' (all output: {LOG})')


@contextlib.contextmanager
def held_back(signals):
    """Have signals wait for the end of a block; yields what lets them through, for processes that start in it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield functools.partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, signals)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def say(line):
    print(line, flush=True)


if __name__ == '__main__':
    sys.exit(main())
