"""The tools as processes of their own: from nothing, as a user starts them, or forked where that is not what is tested.

Importing torch, mmdet and mmseg takes 5 CPU seconds, more than most of what the tests ask of a tool. A server that has
imported them, and nothing of ours, is forked instead: what a fork does it does to itself alone, and ``import mmnorm``
is still the tool's or the config's.
"""

import gc
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
PATH = "import sys; print(*sys.path[1:], sep='\\n')"  # the first is the working directory
IMPORTED = ['torch', 'mmengine.runner', 'mmcv.ops', 'mmdet.apis', 'mmseg.apis']  # by what is forked


def command(name, *args, python=sys.executable):
    """The command line of a tool of ours (by name) or of any script (by path)."""
    path = script(name)
    return [*([python] if path.endswith('.py') else []), path, *map(str, args)]


def script(name):
    """The path of a tool of ours (by name) or of any script (by path)."""
    return name if os.path.isabs(name) else str(ROOT / 'tools' / name)


def environment(python=sys.executable):
    """The environment variables of a user who has activated that of a Python (str)."""
    found = dict(os.environ, PATH=f'{Path(python).parent}{os.pathsep}{os.environ["PATH"]}', OMP_NUM_THREADS='1')
    if python != sys.executable:
        found.pop('PYTHONPATH', None)  # which is for this one
    return found


def run(folder, name, *args, python=sys.executable, timeout=300):
    """Run a tool in a folder as a user would.

    Args:
        python (str): Whose environment is active.

    Returns:
        subprocess.CompletedProcess: Its ``stdout`` has what went to stderr as well.
    """
    return subprocess.run(
        command(name, *args, python=python),
        cwd=folder,
        env=environment(python),
        timeout=timeout,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run_forked(folder, name, *args, ranks=None, python=sys.executable, timeout=300):
    """Run a tool written in Python as :func:`run` does, in a fork of the server.

    Args:
        python (str): Whose environment is active: what it finds is imported, but for what the server has imported.
        ranks (int or None): Run so many at a time, as ranks of one process group.

    Returns:
        subprocess.CompletedProcess: Of all ranks; with the first exit status that is not 0.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(IMPORTED)
    args, groups = [*map(str, args)], [{}]
    if ranks:
        args += ['--launcher', 'pytorch']
        group = dict(WORLD_SIZE=str(ranks), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
        groups = [dict(group, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(ranks)]
    with tempfile.NamedTemporaryFile() as output:
        processes = [
            context.Process(
                target=_work, args=(python, script(name), args, folder, environment(python) | of_rank, output.name)
            )
            for of_rank in groups
        ]
        # the server may ask whether there is a GPU, but must not open it: no fork could use it then
        with mock.patch.dict(os.environ, OMP_NUM_THREADS='1', PYTORCH_NVML_BASED_CUDA_CHECK='1'):
            for process in processes:
                process.start()
        try:
            status = _wait(processes, time.monotonic() + timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()
        said = Path(output.name).read_text()
    if status is None:
        raise subprocess.TimeoutExpired([name, *args], timeout, said)
    return subprocess.CompletedProcess([name, *args], status, said)


def _wait(processes, deadline):
    """The exit status of processes that need each other; None if they are not done in time."""
    while True:
        failed = [process.exitcode for process in processes if process.exitcode]
        running = [process.sentinel for process in processes if process.exitcode is None]
        if failed or not running:
            return failed[0] if failed else 0
        if not wait(running, max(0, deadline - time.monotonic())):
            return None


def _work(python, path, args, folder, variables, output):
    """What a fork does: be ``python path args``."""
    gc.freeze()  # what the server has imported is no garbage, and data sets of mmdet call for a collection
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    multiprocessing.set_start_method(None, force=True)  # that of the platform, which this fork has not
    with open(output, 'ab') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if python != sys.executable:
        sys.executable = python
        sys.path[:] = subprocess.check_output([python, '-c', PATH], text=True).splitlines()
    sys.argv = [path, *args]
    sys.path.insert(0, str(Path(path).parent))
    runpy.run_path(path, run_name='__main__')


def free_port():
    """A port (int) that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]
