"""One training at a time in a work dir: a second one would overwrite the checkpoints of the first."""

import fcntl
import json
import os
import socket
import subprocess
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from mmnorm.files import WriteError

NAME = 'training.lock'


@contextmanager
def training_lock(work_dir):
    """Keep other trainings out of a work dir, by a file that says which process has it; removed at the end.

    A file whose process is gone is taken over: on this host no process has its id, or one that started at another
    time; or it is of this Slurm job, before it was requeued.

    Args:
        work_dir (str or Path): Made if it is not there.

    Raises:
        WriteError: Another training has it, or may have it on another host.
    """
    path = Path(work_dir, NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = _this_process()
    with _locked(path) as file:
        _refuse(path, file.read())
        file.seek(0)
        file.truncate()
        json.dump(own, file)
    try:
        yield
    finally:
        with suppress(OSError), _locked(path) as file:
            if _read(file.read()) == own:
                path.unlink()


def check_unused(work_dir):
    """Raise a WriteError if a training has a work dir; nothing is written."""
    path = Path(work_dir, NAME)
    with suppress(FileNotFoundError):
        _refuse(path, path.read_text())


@contextmanager
def _locked(path):
    """Open a file to read and to change, which nobody else does meanwhile; made if it is not there."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except PermissionError as error:
            check_unused(path.parent)
            raise WriteError(f'{path}, which a training of another user left, cannot be changed: remove it') from error
        with open(file, 'r+') as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:  # else its training has just ended, and removed it
                yield file
                return


def _refuse(path, content):
    """Raise a WriteError unless the process that a lock's content names is gone."""
    other, own = _read(content), _this_process()
    if not other:
        return
    here = all(other.get(key) == own[key] for key in ('host', 'namespace'))
    requeued = own['job'] and other.get('job') == own['job'] and other.get('requeues') != own['requeues']
    if requeued or (here and other.get('start') != _start_of(other.get('process'))):
        return
    way_out = 'wait for its end, or choose another folder (--work-dir)'
    if not here:
        way_out = f'if it has ended, which cannot be seen from here ({own["host"]}), remove {path}; else {way_out}'
    raise WriteError(
        f'{path.parent} is in use: process {other.get("process")} on {other.get("host")} trains there since '
        f'{other.get("since")}, and two trainings would overwrite the checkpoints of each other. So {way_out}'
    )


def _read(content):
    """What a lock says (dict); {} if it was not written whole."""
    with suppress(ValueError):
        content = json.loads(content)
        return content if isinstance(content, dict) else {}
    return {}


def _this_process():
    """What a lock of this process says."""
    return dict(
        host=socket.gethostname(),
        namespace=_link('/proc/self/ns/pid'),  # of a container, in which process ids are its own
        process=os.getpid(),
        start=_start_of(os.getpid()),
        since=datetime.now().astimezone().isoformat(timespec='seconds'),
        job=os.environ.get('SLURM_JOB_ID'),
        requeues=os.environ.get('SLURM_RESTART_COUNT', '0'),
    )


def _link(path):
    with suppress(OSError):
        return os.readlink(path)
    return None


def _start_of(process):
    """When a process of this host started (str), the same whenever it is asked for; None if there is none."""
    with suppress(OSError):
        state, *fields = Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
        boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        return None if state in 'ZX' else f'{fields[18]} ticks after boot {boot}'
    if not Path('/proc/self/stat').exists():
        return (
            subprocess.run(['ps', '-o', 'lstart=', '-p', str(process)], capture_output=True, text=True).stdout or None
        )
    return None
