"""mmengine hooks that call this package's functions while a network trains or is evaluated.

Four come by themselves: ListNormsHook with ``import mmnorm``, SparsestmaxHook where the model has SSN layers,
CountStepsHook where it has layers that use the batches of several steps, and SyncStatisticsHook where a config has
``live_norm`` (configs/_base_/live_norm.py). That file cannot bring the hook in a list: of two bases only one may have
``custom_hooks``, and many configs of mmdet have some.
"""

import random
from contextlib import ExitStack
from functools import partial, wraps

import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce, all_reduce_params
from mmengine.hooks import CheckpointHook, EMAHook, Hook, SyncBuffersHook
from mmengine.runner import EpochBasedTrainLoop, FlexibleRunner, Runner
from torch import nn

from mmnorm.blocks import norm_layers, summarize_norms, update_statistics_once
from mmnorm.norms import BRN, SSN, PlaneNorm
from mmnorm.norms.checks import said, warn_once
from mmnorm.norms.modes import keeping_modes
from mmnorm.norms.steps import SteppedNorm
from mmnorm.statistics import bn_layers, collect_moments, estimation_shift, recollect, trained_by_batch, unwrapped
from mmnorm.terminal import command

from .batches import training_batches, training_forward
from .configs import describe_unreplaced
from .sparsity_hook import SparsestmaxHook
from .steps_hook import CountStepsHook


def install():
    """Have Runners register these hooks; called once, by ``import mmnorm``."""
    for kind in (Runner, FlexibleRunner):
        kind.register_hooks = _adding_ours(kind.register_hooks)


def _adding_ours(register):

    @wraps(register)
    def register_hooks(self, *args, **kwargs):
        register(self, *args, **kwargs)
        for hook, wanted in (
            (ListNormsHook, True),
            (SyncStatisticsHook, 'live_norm' in self.cfg),
            (SparsestmaxHook, _has_layer(self.model, SSN)),
            (CountStepsHook, _has_layer(self.model, SteppedNorm)),
        ):
            if wanted and not any(isinstance(other, hook) for other in self.hooks):
                self.register_hook(hook())

    return register_hooks


def _has_layer(model, kind):
    """Whether a model, which a FlexibleRunner has not built yet, has such a layer."""
    return isinstance(model, nn.Module) and any(isinstance(layer, kind) for layer in model.modules())


class ListNormsHook(Hook):
    """Say when a training starts which norms the model has, and warn of those that norm_eval holds and of BN that a
    norm_cfg left behind.
    """

    def before_train(self, runner):
        model = unwrapped(runner.model)
        with keeping_modes(model):
            model.train()
            runner.logger.info(f'norms of the model: {summarize_norms(model)}')
            for message in dict.fromkeys(m.norm_eval_message() for m in model.modules() if isinstance(m, PlaneNorm)):
                if message and said(message):
                    runner.logger.warning(message)
        unreplaced = describe_unreplaced(runner.cfg.get('model'), model)
        if unreplaced:
            runner.logger.warning(unreplaced)


class SyncStatisticsHook(SyncBuffersHook):
    """Average running statistics over ranks before they are evaluated and before they are saved.

    mmengine's SyncBuffersHook does so after each epoch and before each validation, and iteration-based training saves
    before it validates: such a checkpoint holds the first rank's statistics, and is not what was validated.
    """

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.distributed and any(saves_checkpoint(hook, runner, by_epoch=False) for hook in runner.hooks):
            all_reduce_params(runner.model.buffers(), op='mean')


def saves_checkpoint(hook, runner, by_epoch):
    """Whether a hook is a CheckpointHook that writes a file after this iteration, or (by_epoch) after this epoch."""
    if not isinstance(hook, CheckpointHook) or hook.by_epoch != by_epoch:
        return False
    if by_epoch:
        due, last = hook.every_n_epochs(runner, hook.interval, hook.save_begin), hook.is_last_train_epoch(runner)
    else:
        due, last = hook.every_n_train_iters(runner, hook.interval, hook.save_begin), hook.is_last_train_iter(runner)
    return due or hook.save_last and last


class CheckpointedStatisticsHook(Hook):
    """Update BN's running statistics once a step where activation checkpointing (``with_cp=True``) runs BN twice.

    For stock BN and SyncBN (:func:`~mmnorm.update_statistics_once`); the norms of mmnorm do so without it.
    """

    def before_train(self, runner):
        number = len(update_statistics_once(runner.model))
        runner.logger.info(f'running statistics of {number} stock norms are updated once a step under checkpointing')


class NonFiniteLossError(ValueError):
    """A training has diverged."""


class StopOnNaNHook(Hook):
    """End a training whose loss has been NaN or infinite for so many iterations in a row, and say where that began.

    Not at the first: a mixed precision step whose gradients are not finite is left out, and the next may be well. The
    ranks of a training end together: they compare at every multiple of ``patience`` iterations.

    Args:
        patience (int): Iterations in a row. Default 20.

    Raises:
        NonFiniteLossError: After so many (from ``after_train_iter``).
    """

    def __init__(self, patience=20):
        self.patience = patience

    def before_train(self, runner):
        self._since, self._where, self._removed = None, '', []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        losses = [value for key, value in (outputs or {}).items() if 'loss' in key]
        self._end_watch()
        if all(torch.as_tensor(value).isfinite().all() for value in losses):
            self._since = None
        elif self._since is None:
            self._since = runner.iter + 1
            self._where = _first_non_finite_statistics(runner.model) or self._watch(runner.model)
            runner.logger.warning(f'the loss of iteration {self._since} is not finite')
        if (runner.iter + 1) % self.patience == 0:
            self._end_if_all_agree(runner)

    def _end_if_all_agree(self, runner):
        count = torch.tensor(0 if self._since is None else runner.iter + 2 - self._since)
        all_reduce(count, 'max')
        if count >= self.patience:
            since, where = min(found for found in all_gather_object((self._since, self._where)) if found[0])
            raise NonFiniteLossError(
                f'the loss has not been finite since iteration {since}, for {count} iterations in a row. {where}'
            )

    def _watch(self, model):
        """Look at what enters the norms of the next iteration; say what is known without it."""
        for name, layer in norm_layers(unwrapped(model)).items():
            self._removed.append(layer.register_forward_pre_hook(partial(self._look, name)))
        return (
            'The running statistics of all norms were finite then, and so was what entered them in the next iteration'
        )

    def _look(self, name, layer, inputs):
        if not all(x.isfinite().all() for x in inputs if torch.is_tensor(x)):
            self._where = (
                'The running statistics of all norms were finite then. In the next iteration, when weights may have '
                f'followed the loss, {name} ({type(layer).__name__}) was the first norm whose input was not'
            )
            self._end_watch()

    def _end_watch(self):
        while self._removed:
            self._removed.pop().remove()


def _first_non_finite_statistics(model):
    for name, layer in norm_layers(unwrapped(model)).items():
        for statistic in ('running_mean', 'running_var'):
            value = getattr(layer, statistic, None)
            if value is not None and not value.isfinite().all():
                return (
                    f'{name} ({type(layer).__name__}) is the first norm, in the order of the modules, whose running '
                    f'statistics were not finite then ({statistic}: {int((~value.isfinite()).sum())} of {len(value)})'
                )
    return ''


class RecollectHook(Hook):
    """Recollect running statistics while a network trains, before it is validated and saved (sn, batch average).

    The training's own course does not change, random states included: it normalizes by batch statistics. Layers that
    it holds at fixed statistics (norm_eval, frozen stages) keep theirs, as does BRN, which trains with them.

    Args:
        batches (int): Training batches, of each process. Default 200.
        interval (int or None): Epochs between recollections, or iterations where the training counts these. Default
            None: each epoch, or as often as iteration-based training validates.
        pooled (bool): See :func:`~mmnorm.statistics.recollect`.
        seed (int): Of the choice of images. Default 0.

    Raises:
        ValueError: Beside an EMAHook (when training starts): it keeps statistics of its own.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(self, batches=200, interval=None, pooled=True, seed=0):
        self.batches, self.interval, self.pooled, self.seed = batches, interval, pooled, seed

    def before_train(self, runner):
        if any(isinstance(hook, EMAHook) for hook in runner.hooks):
            raise ValueError(
                'RecollectHook recollects the statistics of the weights that train, EMAHook evaluates and '
                'saves averaged weights: leave out one of the two, and recollect for averaged weights '
                f'after training ({command("statistics")} recollect)'
            )
        self._names = []
        if _has_bn(runner.model, type(self).__name__):
            layers = bn_layers(runner.model)
            self._names = [name for name in trained_by_batch(runner.model) if not isinstance(layers[name], BRN)]
            if not self._names:
                warn_once(
                    'RecollectHook: training holds all running statistics fixed (norm_eval, frozen stages or '
                    'frozen norms), so none are recollected'
                )
        self._by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        self._interval = self.interval or (1 if self._by_epoch else runner.val_interval)

    def after_train_epoch(self, runner):
        if self._by_epoch and (self.every_n_epochs(runner, self._interval) or self.is_last_train_epoch(runner)):
            self._recollect(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if not self._by_epoch and (self.every_n_train_iters(runner, self._interval) or self.is_last_train_iter(runner)):
            self._recollect(runner)

    def _recollect(self, runner):
        if not self._names:
            return
        states = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng():
                # a loader of its own: the training's is in use, and may never end
                batches, number = training_batches(runner.cfg.train_dataloader, self.batches, self.seed)
                recollect(runner.model, batches, training_forward, self._names, self.pooled)
            runner.logger.info(
                f'running statistics of {len(self._names)} layers recollected from {number} batches per process'
            )
        except ValueError as error:  # no reason to end a training
            runner.logger.warning(f'running statistics are not recollected: {error}')
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class EstimationShiftHook(Hook):
    """Measure the estimation shift of every layer in each validation and test (xbn, Definition 2), and log it.

    To mmengine's visualizer, so to scalars.json, TensorBoard and the like: ``estimation_shift/LAYER/NAME``, NAME one of
    esm_mu, esm_sigma, relative_mu, relative_sigma. Of a layer that is called several times in a pass also for each
    call: ``estimation_shift/LAYER/call_1/NAME`` ...
    """

    priority = 'ABOVE_NORMAL'  # its end is before EMAHook's, which takes the averaged weights away

    def before_val_epoch(self, runner):
        self._stack = ExitStack()
        if _has_bn(runner.model, type(self).__name__):
            self._collected = self._stack.enter_context(collect_moments(runner.model))

    def after_val_epoch(self, runner, metrics=None):
        if not _has_bn(runner.model, type(self).__name__):
            return
        try:
            self._stack.close()
        except ValueError as error:  # no reason to end a training
            runner.logger.warning(f'the estimation shift is not measured: {error}')
            return
        shifts = estimation_shift(unwrapped(runner.model), self._collected)
        if runner.rank == 0:
            scalars = {
                f'estimation_shift/{name}/{key}': value
                for layer, shift in shifts.items()
                for name, of_name in _with_calls(layer, shift).items()
                for key, value in of_name.figures.items()
            }
            runner.visualizer.add_scalars(scalars, step=runner.iter)

    before_test_epoch = before_val_epoch
    after_test_epoch = after_val_epoch


def _with_calls(layer, shift):
    return {layer: shift} | {f'{layer}/call_{number}': call for number, call in enumerate(shift.calls, 1)}


def _has_bn(model, hook):
    try:
        bn_layers(model)
    except ValueError as error:
        warn_once(f'{hook}: {error}')
        return False
    return True
