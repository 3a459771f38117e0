"""Killing any process of a run at any moment leaves no process, no torn checkpoint, and a run that resumes."""

import os
import random
import signal
import subprocess
import time

import psutil
import pytest
import torch

from tests.checkpoints import COMPARED, equal
from tests.processes import command, environment

PATIENCE = 60  # seconds until everything of a killed run must be gone; torchrun gives its ranks 30


def start(config, tmp_path, log):
    args = command('dist_train.sh', config, 2, '--resume')
    return psutil.Popen(args, cwd=tmp_path, env=environment(), stdout=log, stderr=subprocess.STDOUT)


def family(process):
    """The processes of a run by role; the run's own process becomes torchrun."""
    everyone = process.children(recursive=True)
    ranks = [p for p in process.children() if 'mmnorm_door' in ' '.join(p.cmdline())]
    workers = [p for rank in ranks for p in rank.children() if 'mmnorm_door' in ' '.join(p.cmdline())]
    return dict(torchrun=[process], rank=ranks, worker=workers), [process, *everyone]


def wait_for_checkpoint(work_dir, known, process, log):
    deadline = time.monotonic() + 150
    while set(work_dir.glob('epoch_*.pth')) <= known:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.05)


@pytest.mark.e2e
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    'kills',
    [
        [('rank', signal.SIGKILL), ('torchrun', signal.SIGKILL)],  # of whose children nobody else takes care
        pytest.param([('worker', signal.SIGKILL), ('torchrun', signal.SIGINT)], marks=pytest.mark.slow),
    ],
    ids=['of parents', 'of others'],
)
def test_kills_at_random_moments_and_resumes(digits_config, tmp_path, kills):
    epochs = 6 * len(kills)
    config = digits_config(
        f'train_cfg = dict(max_epochs={epochs}, val_interval=100)\n'
        'param_scheduler = []\ndefault_hooks = dict(checkpoint=dict(max_keep_ckpts=1))'
    )
    work_dir, path = tmp_path / 'work_dirs/project', tmp_path / 'log'
    rng = random.Random(0)
    for role, how in kills:
        known = set(work_dir.glob('epoch_*.pth'))
        with path.open('a') as log:
            process = start(config, tmp_path, log)
            wait_for_checkpoint(work_dir, known, process, path)
            time.sleep(rng.uniform(0, 2))
            roles, everyone = family(process)
            os.kill(rng.choice(roles[role]).pid, how)
            _, alive = psutil.wait_procs(everyone, timeout=PATIENCE)
        assert not alive, f'{role} was killed, left behind: {alive}'
        assert process.returncode != 0
        for checkpoint in work_dir.glob('epoch_*.pth'):
            torch.load(checkpoint, weights_only=False)  # whole, or it raises

    newest = max(work_dir.glob('epoch_*.pth'), key=lambda path: int(path.stem.split('_')[1]))
    (work_dir / 'epoch_1000.pth').write_bytes(newest.read_bytes()[:5000])
    with path.open('a') as log:
        assert start(config, tmp_path, log).wait(timeout=300) == 0, path.read_text()[-4000:]
    said = path.read_text()
    assert 'epoch_1000.pth: cannot be loaded' in said
    assert f'resumed epoch: {newest.stem.split("_")[1]}' in said
    assert torch.load(work_dir / f'epoch_{epochs}.pth', weights_only=False)['meta']['iter'] == epochs * 4


KILLER = """
import os
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Kill(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 3 and runner.rank == runner.world_size - 1 and os.path.exists('kill'):
            os._exit(9)
"""


@pytest.mark.e2e
def test_ranks_that_resume_within_an_epoch_equal_those_that_were_not_killed(digits_config, tmp_path, forked_tool):
    (tmp_path / 'killer.py').write_text(KILLER)
    config = digits_config(f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
custom_imports = dict(imports=['killer'])
custom_hooks = [dict(type='Kill'), dict(type='EMAHook')]
train_cfg = dict(max_epochs=1, val_interval=100)
default_hooks = dict(checkpoint=dict(interval=2, by_epoch=False))
randomness = dict(seed=None)
train_dataloader.update(num_workers=2)
""")

    def train(*args, work_dir='parts'):
        return forked_tool('train.py', config, '--work-dir', tmp_path / work_dir, *args, ranks=2)

    (tmp_path / 'kill').touch()
    done = train()
    assert done.returncode == 9, done.stdout[-4000:]
    (tmp_path / 'kill').unlink()
    seed = torch.load(tmp_path / 'parts/iter_2.pth', weights_only=False)['meta']['seed']
    done = train('--cfg-options', f'randomness.seed={seed}', work_dir='whole')
    assert done.returncode == 0, done.stdout[-4000:]
    done = train('--resume')
    assert done.returncode == 0, done.stdout[-4000:]
    one, other = (torch.load(tmp_path / name / 'iter_4.pth', weights_only=False) for name in ('whole', 'parts'))
    assert not [key for key in COMPARED if not equal(one[key], other[key])]


@pytest.mark.e2e
@pytest.mark.parametrize('tool', [['train.py'], ['dist_train.sh', 2]], ids=['one process', 'ranks'])
def test_ctrl_c_is_one_line(digits_config, tmp_path, tool):
    config = digits_config('train_cfg = dict(max_epochs=100, val_interval=100)\nparam_scheduler = []')
    name, *ranks = tool
    path = tmp_path / 'log'
    with path.open('w') as log:
        process = psutil.Popen(
            command(name, config, *ranks),
            cwd=tmp_path,
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's group of processes
        )
    wait_for_checkpoint(tmp_path / 'work_dirs/project', set(), process, path)
    everyone = [process, *process.children(recursive=True)]
    os.killpg(process.pid, signal.SIGINT)
    _, alive = psutil.wait_procs(everyone, timeout=PATIENCE)
    said = path.read_text()
    assert not alive and process.returncode == 130, said[-4000:]
    (line,) = (line for line in said.splitlines() if line.startswith('interrupted'))
    assert line == 'interrupted: continue with --resume --work-dir work_dirs/project'
    assert 'Traceback' not in said and 'KeyboardInterrupt' not in said, said[-4000:]
