"""The radius of SSN layers over a training."""

import math

from mmengine.hooks import Hook

from mmnorm.norms import set_sparsity
from mmnorm.norms.checks import warn_once
from mmnorm.statistics import unwrapped

from .steps_hook import first_wrapper

_STEPS = 'sparsestmax_steps'  # in mmengine's message hub, which is a part of each checkpoint


class SparsestmaxHook(Hook):
    """Make the ratios of SSN layers sparser from step to step, until each is 0 or 1.

    The radius grows linearly with the steps that the optimizer has taken, from 0 to the largest; iterations that only
    accumulate gradients, and steps that mixed precision leaves out, do not count, but the last iteration ends it all
    the same. A resumed training goes on where it was. The hook is a part of every training of a model that has SSN
    layers; to give ``end``, name it in custom_hooks.

    Args:
        end (float): The share of the training's steps by which the ratios are 0 and 1, above 0 and at most 1. Default
            1.0. The authors' code has sqrt(2/3), about 0.816: its radius grows to 1, and that of a corner is less.
    """

    priority = 'ABOVE_NORMAL'  # before averaged models copy buffers, and before a checkpoint is written

    def __init__(self, end=1.0):
        if not 0 < end <= 1:
            raise ValueError(f'SparsestmaxHook: end must be above 0 and at most 1, got {end!r}')
        self.end = end

    def before_train(self, runner):
        wrapper = first_wrapper(runner)
        self._total = math.ceil(runner.max_iters / wrapper._accumulative_counts) * self.end
        self._taken = runner.message_hub.get_info(_STEPS, 0)
        self._counting = wrapper.optimizer.register_step_post_hook(self._count)
        if not self._set(runner):
            warn_once('SparsestmaxHook: the model has no SSN layers that train, and the hook does nothing')

    def _count(self, *_):
        self._taken += 1

    def _set(self, runner):
        return set_sparsity(unwrapped(runner.model), min(1.0, self._taken / self._total))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.is_last_train_iter(runner):
            self._taken = max(self._taken, self._total)
        runner.message_hub.update_info(_STEPS, self._taken)
        self._set(runner)

    def after_train(self, runner):
        self._counting.remove()
