"""One of two machines of a training is gone: the other one ends in time, and both resume. Here: two launchers, gloo."""

import signal
import subprocess
from contextlib import suppress

import psutil
import pytest
import torch

from tests.checkpoints import COMPARED, equal
from tests.processes import command, environment, free_port

TIMEOUT = 30  # seconds that a machine waits for the other: --timeout
PATIENCE = 90  # seconds until all of it must have ended; torchrun gives its ranks 30
# A rank that is killed, or only stopped, in the middle of an epoch and between two checkpoints, with its launcher
GONE = """
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Gone(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 3 and os.path.exists(f'gone{runner.rank}'):
            with open(f'gone{runner.rank}') as file:
                how = getattr(signal, file.read())
            os.kill(os.getppid(), how)
            os.kill(os.getpid(), how)
"""


@pytest.fixture
def config(digits_config, tmp_path):
    (tmp_path / 'gone.py').write_text(GONE)
    return digits_config(f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
custom_imports = dict(imports=['gone'])
custom_hooks = [dict(type='Gone'), dict(type='EMAHook')]
train_cfg = dict(max_epochs=1, val_interval=100)
default_hooks = dict(checkpoint=dict(interval=2, by_epoch=False))
""")


@pytest.fixture
def start(config, tmp_path):
    """Start the training on two machines, one process each; what is left of them at the end of the test is killed."""
    started = []

    def run(*args):
        group = dict(NNODES='2', MASTER_ADDR='127.0.0.1', PORT=str(free_port()))
        for node in range(2):
            with (tmp_path / f'log{node}').open('w') as log:
                launcher = psutil.Popen(
                    command('dist_train.sh', config, 1, '--timeout', TIMEOUT, *args),
                    cwd=tmp_path,
                    env=environment() | group | dict(NODE_RANK=str(node), OF_THIS_TEST=str(tmp_path)),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            started.append(launcher)
        return started[-2:]

    yield run
    for process in processes_of(tmp_path):
        process.kill()
    psutil.wait_procs(started)


def processes_of(folder):
    """All processes that were started in a folder, whoever their parents are by now."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has just ended
            if process.environ().get('OF_THIS_TEST') == str(folder):
                found.append(process)
    return found


@pytest.mark.e2e
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    'gone, how',
    [
        (1, 'SIGKILL'),
        pytest.param(0, 'SIGKILL', marks=pytest.mark.slow),  # which had the lock, and where the others meet
        pytest.param(0, 'SIGSTOP', marks=pytest.mark.slow),  # as when the network fails: nobody closes a connection
    ],
)
def test_the_other_one_ends_and_both_resume(start, config, tmp_path, forked_tool, gone, how):
    work_dir, order = tmp_path / 'work_dirs/project', tmp_path / f'gone{gone}'
    order.write_text(how)
    machines = start()
    status = machines[1 - gone].wait(timeout=600)
    said = (tmp_path / f'log{1 - gone}').read_text()
    assert status == 1 and 'Traceback' not in said and 'FAILED' not in said, said[-4000:]
    (error,) = [line for line in said.splitlines() if line.startswith('error: ')]
    assert error.startswith('error: another process of this run is gone, or did not answer in time: RuntimeError: ')
    assert ('Timed out waiting' in error) == (how == 'SIGSTOP')
    if how == 'SIGSTOP':
        for process in processes_of(tmp_path):
            process.resume()
    assert machines[gone].wait(timeout=PATIENCE) == (-signal.SIGKILL if how == 'SIGKILL' else 1)
    _, alive = psutil.wait_procs(processes_of(tmp_path), timeout=PATIENCE)
    assert not alive
    torch.load(work_dir / 'iter_2.pth', weights_only=False)  # whole, or it raises
    assert [path.name for path in work_dir.glob('*.pth*')] == ['iter_2.pth']
    assert (work_dir / 'training.lock').exists() == (gone == 0 and how == 'SIGKILL')

    order.unlink()
    if gone == 1:  # the quicker way to have two ranks
        assert forked_tool('train.py', config, '--resume', ranks=2).returncode == 0
    else:
        assert [machine.wait(timeout=600) for machine in start('--resume')] == [0, 0]
    done = forked_tool('train.py', config, '--work-dir', tmp_path / 'whole', ranks=2)
    assert done.returncode == 0, done.stdout[-4000:]
    one, other = (torch.load(folder / 'iter_4.pth', weights_only=False) for folder in (work_dir, tmp_path / 'whole'))
    assert not [key for key in COMPARED if not equal(one[key], other[key])]
    assert not (work_dir / 'training.lock').exists()
