"""What a run was: run.json in its work directory, which the report reads."""

import os
import resource
import subprocess
import time
from collections import Counter
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mmcv
import mmengine
import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook

import mmnorm
from mmnorm.blocks import norm_layers
from mmnorm.files import read_json, write_json
from mmnorm.statistics import unwrapped


class RunRecordHook(Hook):
    """Write ``run.json`` when training starts, with each checkpoint, and when it ends.

    It holds the config's path, git commit, seed, number of processes, global batch size, device, versions, times,
    iterations, number of parameters, norm layers by type, and peak memory of a process in MiB (of all processes at
    the end, of the first before that).
    """

    priority = 'VERY_LOW'

    def before_train(self, runner):
        model = unwrapped(runner.model)
        self._path = Path(runner.work_dir, 'run.json')
        self._start = time.monotonic()
        self._earlier = self._earlier_seconds(runner)
        self._record = dict(
            config=runner.cfg.filename,
            cwd=os.getcwd(),
            **git_state(),
            seed=runner.seed,
            world_size=get_world_size(),
            batch_size=(runner.cfg.train_dataloader.get('batch_size') or 0) * get_world_size() or None,
            device=describe_device(),
            versions=versions(),
            started=datetime.now().astimezone().isoformat(timespec='seconds'),
            finished=None,
            num_parameters=sum(p.numel() for p in model.parameters()),
            norms=dict(Counter(type(layer).__name__ for layer in norm_layers(model).values())),
        )
        self._write(runner, peak_memory())

    def before_save_checkpoint(self, runner, checkpoint):
        self._write(runner, peak_memory())

    def after_train(self, runner):
        peak = torch.tensor(peak_memory(), dtype=torch.float64)
        all_reduce(peak, 'max')
        self._record['finished'] = datetime.now().astimezone().isoformat(timespec='seconds')
        self._write(runner, peak.item())

    def _earlier_seconds(self, runner):
        # a resumed run goes on with the time that the record of its work directory holds
        if runner.iter == 0 or not self._path.is_file():
            return 0.0
        try:
            return float(dict(read_json(self._path))['train_seconds'])
        except (KeyError, TypeError, ValueError):
            runner.logger.warning(f'{self._path} is damaged: the time of earlier sessions is not counted')
            return 0.0

    def _write(self, runner, peak):
        if runner.rank != 0:
            return
        self._record.update(
            iterations=runner.iter,
            train_seconds=round(self._earlier + time.monotonic() - self._start, 1),
            peak_memory_mb=round(peak, 1),
            peak_memory_kind='cuda' if torch.cuda.is_available() else 'rss',
        )
        write_json(self._path, self._record)


def peak_memory():
    """Peak memory of this process in MiB: allocated on the GPU, or resident where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def git_state():
    """Commit of the project in the current directory, and whether tracked files differ from it; None outside one."""

    def git(*args):
        done = subprocess.run(['git', *args], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        return dict(commit=git('rev-parse', 'HEAD'), dirty=bool(git('status', '--porcelain', '--untracked-files=no')))
    except FileNotFoundError:  # no git on this machine
        return dict(commit=None, dirty=False)


def describe_device():
    """What one process computes on, and how many of them there are."""
    if torch.cuda.is_available():
        return f'{get_world_size()} x {torch.cuda.get_device_name()}'
    names = [line.partition(':')[2].strip() for line in _cpuinfo() if line.startswith('model name')]
    return f'{get_world_size()} x CPU process on {os.cpu_count()} cores of {names[0] if names else "a CPU"}'


def _cpuinfo():
    path = Path('/proc/cpuinfo')
    return path.read_text().splitlines() if path.is_file() else []


def versions():
    """Versions of what the run was made of."""
    found = dict(
        mmnorm=mmnorm.__version__, torch=torch.__version__, mmcv=mmcv.__version__, mmengine=mmengine.__version__
    )
    for name, distributions in dict(
        mmdet=('mmdet', 'onedl-mmdetection'),
        mmseg=('mmsegmentation', 'onedl-mmsegmentation'),
        mmpretrain=('mmpretrain', 'onedl-mmpretrain'),
    ).items():
        for distribution in distributions:
            try:
                found[name] = version(distribution)
            except PackageNotFoundError:
                continue
    return found
