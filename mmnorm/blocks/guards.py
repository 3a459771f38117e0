"""Guards around functions of torch that take every BatchNorm for a plain one, or look into layers.

Our layers subclass ``nn.BatchNorm2d``, so that whatever looks for BNs finds them. These functions are wrapped, wherever
they were imported to; :mod:`mmnorm.openmmlab.guards` does the same for the hosts':

- ``nn.SyncBatchNorm.convert_sync_batchnorm`` would make plain SyncBN of any of them: a layer becomes its own Sync twin
  (SN becomes SyncSN) if it has one, over the ranks that the function is given, and is left alone if not.
- ``torch.nn.utils.fuse_conv_bn_eval`` and ``fuse_linear_bn_eval``, which quantization uses too, would fold any of them
  by its running statistics: a layer that is BN in evaluation folds right, the others are refused.
- ``torch.fx`` would trace into their forward, which asks for shapes: they are leaves of every Tracer, as torch's are.
"""

import functools
import inspect
import sys
from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from mmnorm.norms import EN, SYNC_TWINS, BatchFreeNorm, PlaneNorm
from mmnorm.norms.checks import warn_once

from .fuse import constant_affine


def install() -> None:
    """Wrap the functions above; called once, by ``import mmnorm``."""
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    nn.SyncBatchNorm.convert_sync_batchnorm = staticmethod(  # type: ignore[method-assign]
        retype_ours(leave_ours_alone(convert), SYNC_TWINS)
    )
    for fuse in (fuse_conv_bn_eval, fuse_linear_bn_eval):
        rebind(fuse, _constant_or_refused(fuse))
    fx.Tracer.call_module = _with_ours_as_leaves(fx.Tracer.call_module)  # type: ignore[method-assign]


def rebind(function: Any, guarded: Any) -> None:
    """Put ``guarded`` in the place of ``function`` in every module that has imported it."""
    name = function.__name__
    for module in list(sys.modules.values()):
        if getattr(module, '__dict__', {}).get(name) is function:
            setattr(module, name, guarded)


def retype_ours(function, types):
    """Have a function that converts a model make each of our layers one of another type, of the same parameters."""

    @functools.wraps(function)
    def guarded(module, *args, **kwargs):
        made = set()
        # torch's function may be given a group of some ranks, mmengine's the name of an implementation
        group = next((v for v in (*args, *kwargs.values()) if v is not None and not isinstance(v, str)), None)
        for layer in module.modules():
            # EN's virtual batches are smaller than a process's, synchronized ones larger
            if type(layer) in types and not (isinstance(layer, EN) and layer.virtual_batch_size):
                made.add(f'{type(layer).__name__} to {types[type(layer)].__name__}')
                layer.__class__ = types[type(layer)]
                layer.set_ranks(group)
            elif group is not None and isinstance(layer, PlaneNorm) and layer.sync:
                layer.set_ranks(group)
        if made:
            warn_once(f'{function.__name__} turns {", ".join(sorted(made))}')
        return function(module, *args, **kwargs)

    return guarded


def leave_ours_alone(function, say=True):
    """Have a function that walks over a model not see our layers; say so, once, of those that have no other way."""

    @functools.wraps(function)
    def guarded(module, *args, **kwargs):
        ours = {name: m for name, m in module.named_modules(remove_duplicate=False) if isinstance(m, PlaneNorm)}
        if not ours:
            return function(module, *args, **kwargs)
        kinds = ', '.join(sorted({type(m).__name__ for m in ours.values() if not m.sync}))
        if say and kinds:
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


def _constant_or_refused(fuse):
    signature = inspect.signature(fuse)

    @functools.wraps(fuse)
    def guarded(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        norm = bound.arguments['bn']
        if isinstance(norm, (PlaneNorm, BatchFreeNorm)):
            bound.arguments['bn'] = constant_affine(norm)
            if bound.arguments['bn'] is None:
                raise ValueError(
                    f'{fuse.__name__}: {type(norm).__name__} is not the same affine per channel for every sample in '
                    'evaluation, so it cannot be folded: leave it in its place. mmnorm.fuse_conv_norm(model) folds '
                    'all that can be, and says what it leaves'
                )
        return fuse(*bound.args, **bound.kwargs)

    return guarded


def _with_ours_as_leaves(call_module):

    @functools.wraps(call_module)
    def guarded(self, m, forward, args, kwargs):
        # tensors are what torch.export has, whose tracer is a Tracer too and knows no leaves
        symbolic = any(isinstance(value, fx.Proxy) for value in (*args, *kwargs.values()))
        # not is_leaf_module, which other tracers have of their own
        if symbolic and isinstance(m, (PlaneNorm, BatchFreeNorm)):

            def forward(*args, **kwargs):
                return self.create_proxy('call_module', self.path_of_module(m), args, kwargs)

        return call_module(self, m, forward, args, kwargs)

    return guarded
