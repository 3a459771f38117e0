"""mmengine hooks that call this package's functions while a network trains or is evaluated."""
import random
from contextlib import ExitStack

import numpy as np
import torch
from mmengine.hooks import Hook

from .batches import training_batches, training_forward
from .calibrate import trained_by_batch
from .collect import collect_moments, unwrapped
from .recollect import recollect
from .shift import estimation_shift


class RecollectHook(Hook):
    """Recollect running statistics while a network trains, before it is validated and saved (sn, batch average).

    The training's own course does not change, random states included: it normalises by batch statistics. Layers that
    it holds at fixed statistics (norm_eval, frozen stages) keep theirs.

    Args:
        batches (int): Training batches, of each process. Default 200.
        interval (int): Epochs between recollections, or iterations. Default 1.
        by_epoch (bool): Default True; False for iteration-based training.
        pooled (bool): See :func:`~mmnorm.statistics.recollect`.
        seed (int): Of the choice of images. Default 0.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(self, batches=200, interval=1, by_epoch=True, pooled=True, seed=0):
        self.batches, self.interval, self.by_epoch, self.pooled, self.seed = batches, interval, by_epoch, pooled, seed

    def after_train_epoch(self, runner):
        if self.by_epoch and (self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner)):
            self._recollect(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if not self.by_epoch and (self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)):
            self._recollect(runner)

    def _recollect(self, runner):
        states = random.getstate(), np.random.get_state()
        names = trained_by_batch(runner.model)
        with torch.random.fork_rng():
            # a loader of its own: the training's is in use, and may never end
            batches, number = training_batches(runner.cfg.train_dataloader, self.batches, self.seed)
            recollect(runner.model, batches, training_forward, names, self.pooled)
        random.setstate(states[0])
        np.random.set_state(states[1])
        runner.logger.info(f'running statistics of {len(names)} layers recollected from {number} batches a process')


class EstimationShiftHook(Hook):
    """Measure the estimation shift of every layer in each validation and test (xbn, Definition 2), and log it.

    To mmengine's visualizer, so to scalars.json, TensorBoard and the like: ``estimation_shift/LAYER/NAME``, NAME one of
    esm_mu, esm_sigma, relative_mu, relative_sigma.
    """

    priority = 'NORMAL'

    def before_val_epoch(self, runner):
        self._stack = ExitStack()
        self._collected = self._stack.enter_context(collect_moments(runner.model))

    def after_val_epoch(self, runner, metrics=None):
        self._stack.close()
        shifts = estimation_shift(unwrapped(runner.model), self._collected)
        if runner.rank == 0:
            keys = 'esm_mu', 'esm_sigma', 'relative_mu', 'relative_sigma'
            runner.visualizer.add_scalars({f'estimation_shift/{name}/{key}': getattr(shift, key)
                                           for name, shift in shifts.items() for key in keys}, step=runner.iter)

    before_test_epoch = before_val_epoch
    after_test_epoch = after_val_epoch
