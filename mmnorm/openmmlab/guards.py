"""Guards around functions of mmengine, mmcv and torch that take every BatchNorm for a plain one.

Our layers subclass ``nn.BatchNorm2d``, so that norm_eval, norm_decay_mult and tools that recollect statistics find
them. These functions would silently turn them into something else, and are wrapped, wherever they were imported to:

- ``mmengine.model.convert_sync_batchnorm`` (``Runner(sync_bn=...)``) and ``nn.SyncBatchNorm.convert_sync_batchnorm``
  would make plain SyncBN of any of them: a layer becomes its own Sync twin (SN becomes SyncSN) if it has one, and is
  left alone if not. ``mmengine.model.revert_sync_batchnorm`` turns the twins back.
- ``mmcv.cnn.fuse_conv_bn`` would fold any of them into the conv before, and BNs behind them through them. It also takes
  any Conv2d for a plain one, and any BN after a convolution in the order of attributes for one that takes its output,
  which weight-standardized convolutions and those that several BNs share make wrong by up to 1000 times the output:
  :func:`mmnorm.fuse_conv_norm` folds instead, on every model.
- ``ConvModule(efficient_conv_bn_eval=True)`` does the same in forward: it is turned off for all but FrozenBN.
  mmengine's ``turn_on_efficient_conv_bn_eval_for_single_model`` traces the model, which ours do not take part in: a
  model that has one is left alone.

Each says once what it did.
"""

import functools
import sys
from importlib.util import find_spec

from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval_for_single_model
from torch import nn
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm

from mmnorm.blocks import fuse_conv_norm
from mmnorm.norms import EN, SYNC_TWINS, FrozenBN, PlaneNorm
from mmnorm.norms.checks import warn_once
from mmnorm.norms.modes import keeping_modes


def install():
    """Wrap the functions above; called once, by ``import mmnorm``."""
    torch_convert = nn.SyncBatchNorm.convert_sync_batchnorm
    rebind(convert_sync_batchnorm, _retype_ours(_leave_ours_alone(convert_sync_batchnorm), SYNC_TWINS))
    nn.SyncBatchNorm.convert_sync_batchnorm = staticmethod(_retype_ours(_leave_ours_alone(torch_convert), SYNC_TWINS))
    rebind(revert_sync_batchnorm, _retype_ours(revert_sync_batchnorm, {sync: own for own, sync in SYNC_TWINS.items()}))
    rebind(
        turn_on_efficient_conv_bn_eval_for_single_model, _not_with_ours(turn_on_efficient_conv_bn_eval_for_single_model)
    )
    if find_spec('mmcv') is None:
        return
    from mmcv.cnn import ConvModule, fuse_conv_bn

    rebind(fuse_conv_bn, _fold_by_our_rules(fuse_conv_bn))
    ConvModule.turn_on_efficient_conv_bn_eval = _not_for_ours(ConvModule.turn_on_efficient_conv_bn_eval)


def rebind(function, guarded):
    """Put ``guarded`` in the place of ``function`` in every module that has imported it."""
    for module in list(sys.modules.values()):
        if getattr(module, '__dict__', {}).get(function.__name__) is function:
            setattr(module, function.__name__, guarded)


def _retype_ours(function, types):
    """Have a function that converts a model make each of our layers one of another type, of the same parameters."""

    @functools.wraps(function)
    def guarded(module, *args, **kwargs):
        made = set()
        # ours synchronize over all ranks, not over the group of some that torch's function may be given
        ours = [] if any(isinstance(v, ProcessGroup) for v in (*args, *kwargs.values())) else module.modules()
        for layer in ours:
            # EN's virtual batches are smaller than a process's, synchronized ones larger
            if type(layer) in types and not (isinstance(layer, EN) and layer.virtual_batch_size):
                made.add(f'{type(layer).__name__} to {types[type(layer)].__name__}')
                layer.__class__ = types[type(layer)]
        if made:
            warn_once(f'{function.__name__} turns {", ".join(sorted(made))}')
        return function(module, *args, **kwargs)

    return guarded


def _leave_ours_alone(function):
    """Have a function that walks over a model not see our layers."""

    @functools.wraps(function)
    def guarded(module, *args, **kwargs):
        ours = {name: m for name, m in module.named_modules(remove_duplicate=False) if isinstance(m, PlaneNorm)}
        if not ours:
            return function(module, *args, **kwargs)
        kinds = ', '.join(sorted({type(m).__name__ for m in ours.values() if not m.sync}))
        if kinds:
            warn_once(f'{function.__name__} skips {kinds}: not a plain BatchNorm')
        if '' in ours:
            return module
        for name in ours:
            module.set_submodule(name, nn.Identity())
        try:
            return function(module, *args, **kwargs)
        finally:
            for name, layer in ours.items():
                module.set_submodule(name, layer)

    return guarded


def _has_ours(module):
    return any(isinstance(m, PlaneNorm) for m in module.modules())


def _fold_by_our_rules(fuse):

    @functools.wraps(fuse)
    def guarded(module):
        with keeping_modes(module):
            module.eval()
            fused = fuse_conv_norm(module)
        if any(isinstance(module.get_submodule(name), _BatchNorm) for name in fused.left):
            warn_once(f'fuse_conv_bn: {fused}')
        return module

    return guarded


def _not_with_ours(turn_on):

    @functools.wraps(turn_on)
    def guarded(model):
        if _has_ours(model):
            warn_once('efficient_conv_bn_eval stays off for a model with norms of mmnorm: not plain BatchNorms')
        else:
            turn_on(model)

    return guarded


def _not_for_ours(turn_on):

    @functools.wraps(turn_on)
    def guarded(self, efficient_conv_bn_eval=True):
        ours = isinstance(self.norm, PlaneNorm) and not isinstance(self.norm, FrozenBN)
        if efficient_conv_bn_eval and ours:
            warn_once(f'efficient_conv_bn_eval stays off for {type(self.norm).__name__}: not a plain BatchNorm')
        turn_on(self, efficient_conv_bn_eval and not ours)

    return guarded
