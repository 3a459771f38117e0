"""What a training draws and loads at a step follows from seed, rank and position alone.

So a resumed training needs no random states: it goes to its position. mmengine seeds once, when a run starts, and what
is drawn later depends on all that was drawn before, by evaluations and by loader workers that run ahead too.

- Each iteration is seeded anew, as are epochs and evaluations (:class:`SeedStepsHook`).
- Each batch is chosen and loaded from a seed of its own, in whatever process that is (:class:`Batches`). To continue in
  the middle, the sampler chooses again up to there; no data are read.
"""

import hashlib
import random
import zlib
from collections import deque
from functools import partial
from itertools import count, islice

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import IterableDataset, get_worker_info


def seed_all(*parts):
    """Seed python, numpy, torch and the GPU in use from what names a step.

    Args:
        *parts (int or str): Seed of the run, kind of step, its number and the like.
    """
    seed = int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), 'little')
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


class _Batch(list):
    """The indices of a batch, with what its loading is seeded by."""

    seeded_by = ()


class Batches:
    """The batch sampler of a loader, which knows how far a training has come in it and can start from there.

    Args:
        loader (DataLoader): Whose batch sampler this replaces; its workers seed each batch from then on.
        seed (int): Of the run.
        rank (int): Of this process.
        say (callable): Called with a warning if the sampler cannot be brought to its position.
    """

    def __init__(self, loader, seed, rank, say):
        self.batch_sampler, self._seed, self._rank, self._say = loader.batch_sampler, seed, rank, say
        self.turn = 0  # passes over the data before this one
        self.position = dict(turn=0, taken=0, digest=0)  # of the last batch that the training has had
        self._ahead = deque()  # positions of batches that the loader has asked for, and the training has not had
        self._start = None
        vars(loader)['batch_sampler'] = self  # DataLoader forbids to set it, as its own sampler would be another
        loader.generator = torch.Generator()  # else each start of an iterator draws from the training's states
        if loader.num_workers:
            loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)
        else:
            _seed_batches(loader.dataset)

    @classmethod
    def of(cls, loader, *args):
        """Those of a loader, made at the first call; None if it has no batch sampler, as with iterable data."""
        sampler = getattr(loader, 'batch_sampler', None)
        if isinstance(sampler, cls):
            return sampler
        return None if sampler is None or isinstance(loader.dataset, IterableDataset) else cls(loader, *args)

    def __getattr__(self, name):  # hooks look for `sampler` and `batch_size`
        if name == 'batch_sampler':
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)

    def __len__(self):
        return len(self.batch_sampler)

    def start_from(self, turn, taken, digest):
        """Go on with the batch after ``taken`` ones of pass ``turn``; digest (int or None): what these were."""
        self.turn, self._start = turn, (turn, taken, digest)
        self.position = dict(turn=turn, taken=taken, digest=digest or 0)

    def take(self):
        """Note that the training has the next batch."""
        if self._ahead:
            self.position = self._ahead.popleft()

    def __iter__(self):
        turn, digest, number = self.turn, 0, 0
        start, self._start = self._start, None
        skipped, expected = start[1:] if start and start[0] == turn else (0, 0)
        self._ahead.clear()
        batches = self._choose(turn)
        for batch in islice(batches, skipped):
            digest, number = _digest(batch, digest), number + 1
        if skipped and (number < skipped or expected not in (None, digest)):
            self._say(
                f'the sampler {type(self.batch_sampler.sampler).__name__} does not give the {skipped} batches again '
                'that this pass over the data began with, because the data have changed or it keeps states that '
                'nobody can restore: from here on the order of the data is another than that of the first run'
            )
        for number, batch in enumerate(batches, skipped + 1):
            digest = _digest(batch, digest)
            self._ahead.append(dict(turn=turn, taken=number, digest=digest))
            batch = _Batch(batch)
            batch.seeded_by = self._seed, 'data', self._rank, turn, number
            yield batch

    def _choose(self, turn):
        seed_all(self._seed, 'order', turn)
        batches = iter(self.batch_sampler)
        for number in count(1):
            seed_all(self._seed, 'order', turn, number)
            try:
                yield next(batches)
            except StopIteration:
                return


def _digest(batch, before):
    return zlib.crc32(repr(list(batch)).encode(), before)


def _start_worker(init, worker_id):
    if init is not None:
        init(worker_id)
    _seed_batches(get_worker_info().dataset)


def _seed_batches(dataset):
    """Have a data set seed what it draws for a batch; what has no attributes, such as a list, draws nothing."""
    if hasattr(dataset, '__dict__'):
        dataset.__getitems__ = partial(_load, dataset, getattr(dataset, '__getitems__', None))


def _load(dataset, load, batch):
    if isinstance(batch, _Batch):
        seed_all(*batch.seeded_by)
    return load(batch) if load else [dataset[index] for index in batch]


class EndlessLoader:
    """What iteration-based training takes its batches from: a loader over and over, that starts where it stands.

    Args:
        loader (DataLoader): With :class:`Batches`.
        thrown_away (int): How many batches the loop takes first to throw them away, as in mmengine 0.10.7, which so
            goes to its position.
    """

    def __init__(self, loader, thrown_away):
        self._loader, self._iterator, self._thrown_away = loader, None, thrown_away

    def skip_iter(self, num_iters):
        """Nothing: the batches know their position."""

    def __iter__(self):
        return self

    def __next__(self):
        if self._thrown_away:
            self._thrown_away -= 1
            return None
        if self._iterator is None:
            self._open()
        try:
            return next(self._iterator)
        except StopIteration:
            self._loader.batch_sampler.turn += 1
            self._open()
            return next(self._iterator)

    def _open(self):
        for sampler in (self._loader.sampler, getattr(self._loader.batch_sampler, 'sampler', None)):
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(self._loader.batch_sampler.turn)
        self._iterator = iter(self._loader)


class SeedStepsHook(Hook):
    """Seed each iteration, epoch and evaluation of a training, and count the batches that it has had."""

    priority = 'HIGHEST'

    def before_train_epoch(self, runner):
        seed_all(runner.seed, 'epoch', runner.epoch)
        batches = self._batches(runner)
        if batches is not None and isinstance(runner.train_loop, EpochBasedTrainLoop):
            batches.turn = runner.epoch

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        seed_all(runner.seed, 'step', runner.iter)
        batches = self._batches(runner)
        if batches is not None:
            batches.take()

    def before_val(self, runner):
        seed_all(runner.seed, 'evaluation', runner.iter)

    def _batches(self, runner):
        found = getattr(runner.train_loop.dataloader, 'batch_sampler', None)
        return found if isinstance(found, Batches) else None
