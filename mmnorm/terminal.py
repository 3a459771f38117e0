"""What is said to the user: by one rank, in words that a terminal can show. Needs the standard library alone."""

import os
import shutil
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

#: Environment variable: the id of the command of ours that started this process, which is not to outlive it
PARENT = 'MMNORM_PARENT'
INTERVAL = 10  # seconds between lines that say how far long work is
HOME = Path(__file__).resolve().parent
TOOLS = HOME.with_name('tools')  # of a checkout


def rank():
    """This process among those of its run (int); 0 where there is one."""
    names = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')  # of torchrun, srun and mpirun
    return int(next((os.environ[name] for name in names if name in os.environ), 0))


def on_first_rank():
    """Whether this is the process that talks to the user, process group or not yet."""
    return rank() == 0


def printable(text):
    """A text without what a name in a file could do to a terminal."""
    return ''.join(letter if letter.isprintable() or letter == '\n' else '?' for letter in text)


def command(name):
    """How a command of mmnorm is started here.

    Args:
        name (str): Of :data:`mmnorm.cli.COMMANDS`.

    Returns:
        str: ``mmnorm NAME`` where this Python's environment has that program and the shell finds it; else the file of
        ``tools/`` in a checkout, else what works wherever mmnorm can be imported.
    """
    program = shutil.which('mmnorm')
    if program and Path(program).parent == Path(sys.executable).parent:
        return f'mmnorm {name}'
    doors = (path for path in sorted(TOOLS.glob('*.py')) if f"enter('{name}')" in path.read_text(encoding='utf-8'))
    door = next(doors, None)
    return f'python {_shown(door)}' if door else f'python -m mmnorm.cli {name}'


def config(name):
    """The path (str) under which a config of mmnorm is found here, by its name in ``configs``, for advice."""
    checkout = TOOLS.with_name('configs')
    return _shown((checkout if checkout.is_dir() else HOME / '.mim/configs') / name)


def _shown(path):
    here = Path.cwd()
    return str(path.relative_to(here) if here in path.parents else path)


def progress(iterable, what, total=None):
    """Show on the first rank how far an iterable is gone through: by a bar, or where there is no terminal by lines.

    Args:
        iterable (Iterable): What to go through.
        what (str): Of what this is the progress.
        total (int or None): Number of items, if the iterable does not know it.

    Returns:
        Iterable: The same items.
    """
    total = len(iterable) if total is None else total
    if not on_first_rank():
        return iterable
    if sys.stderr.isatty() and find_spec('rich'):
        from rich.console import Console
        from rich.progress import track

        return track(iterable, what, total, console=Console(stderr=True), transient=True)
    return _with_lines(iterable, what, total)


def _with_lines(iterable, what, total):
    done, start = 0, time.monotonic()

    def so_far():
        left = (time.monotonic() - start) / done * (total - done) if done else None
        return f'{done} of {total}' + (f', {timedelta(seconds=round(left))} left' if done else '')

    with working(what, so_far):
        for item in iterable:
            yield item
            done += 1


@contextmanager
def working(what, so_far=None):
    """Print a line every 10 s, on the first rank, while a block runs.

    Args:
        what (str): What the block does.
        so_far (callable or None): Returns how far it is (str). Default: the time since its start.
    """
    if not on_first_rank():
        yield
        return
    start, ended = time.monotonic(), threading.Event()
    so_far = so_far or (lambda: f'{timedelta(seconds=round(time.monotonic() - start))} so far')

    def tell():
        while not ended.wait(INTERVAL):
            print(f'{what}: {so_far()}', file=sys.stderr, flush=True)

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
