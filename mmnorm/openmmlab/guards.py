"""Guards around functions of mmengine, mmcv and mmdet that take every BatchNorm for a plain one.

Our layers subclass ``nn.BatchNorm2d``, so that norm_eval, norm_decay_mult and tools that recollect statistics find
them. These functions would silently turn them into something else, and are wrapped, wherever they were imported to, as
those of torch are by :mod:`mmnorm.blocks.guards`:

- ``mmengine.model.convert_sync_batchnorm`` (``Runner(sync_bn=...)``) would make plain SyncBN of any of them, as torch's
  own. ``mmengine.model.revert_sync_batchnorm`` turns their Sync twins back.
- ``mmcv.cnn.fuse_conv_bn`` would fold any of them into the conv before, and BNs behind them through them. It also takes
  any Conv2d for a plain one, and any BN after a convolution in the order of attributes for one that takes its output,
  which weight-standardized convolutions and those that several BNs share make wrong by up to 1000 times the output:
  :func:`mmnorm.fuse_conv_norm` folds instead, on every model.
- ``ConvModule(efficient_conv_bn_eval=True)`` does the same in forward: it is turned off for all but FrozenBN, and
  behind ConvMABN and ConvWN, whose ``weight`` is not what they convolve with.
  mmengine's ``turn_on_efficient_conv_bn_eval_for_single_model`` traces the model, which ours do not take part in: a
  model that has one, or such a convolution, is left alone.
- mmdet's ``FrozenBatchNorm2d.convert_frozen_batchnorm`` would make frozen BNs of them: they become frozen themselves,
  and stay what they are.
- ``build_norm_layer`` of mmcv and mmpretrain gives every norm an eps of 1e-5 where norm_cfg says none: one whose paper
  has another keeps that.
- ``mmengine.model.constant_init`` sets weight and bias, by 0 those of the norms that end residual blocks
  (zero_init_residual): where that does not make a block the identity, it says so.
- mmengine's optimizer constructor takes the parameters of each module for its own: with ``paramwise_cfg`` the levels of
  a PerLevel, which share theirs, would end in torch's error that a parameter is in several groups.

Each says once what it did.
"""

import functools
import sys
from importlib.util import find_spec

from mmengine.model import constant_init, convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval_for_single_model
from mmengine.optim import DefaultOptimWrapperConstructor
from torch.nn.modules.batchnorm import _BatchNorm

from mmnorm.blocks import CONVOLUTIONS, freeze_norms, fuse_conv_norm
from mmnorm.blocks.guards import leave_ours_alone, rebind, retype_ours
from mmnorm.norms import SYNC_TWINS, BatchFreeNorm, FrozenBN, PerLevel, PlaneNorm
from mmnorm.norms.checks import warn_once
from mmnorm.norms.modes import keeping_modes


def install():
    """Wrap the functions above; called once, by ``import mmnorm``."""
    rebind(convert_sync_batchnorm, retype_ours(leave_ours_alone(convert_sync_batchnorm), SYNC_TWINS))
    rebind(revert_sync_batchnorm, retype_ours(revert_sync_batchnorm, {sync: own for own, sync in SYNC_TWINS.items()}))
    rebind(
        turn_on_efficient_conv_bn_eval_for_single_model, _not_with_ours(turn_on_efficient_conv_bn_eval_for_single_model)
    )
    rebind(constant_init, _saying_what_is_not_zero(constant_init))
    DefaultOptimWrapperConstructor.add_params = _of_one_level(DefaultOptimWrapperConstructor.add_params)
    if find_spec('mmcv') is None:
        return
    from mmcv.cnn import ConvModule, fuse_conv_bn

    guard_norm_builders()
    rebind(fuse_conv_bn, _fold_by_our_rules(fuse_conv_bn))
    ConvModule.turn_on_efficient_conv_bn_eval = _not_for_ours(ConvModule.turn_on_efficient_conv_bn_eval)


def guard_frozen_batchnorm(kind):
    """Wrap ``convert_frozen_batchnorm`` of mmdet's class, which is not imported before it is used."""
    if not hasattr(kind.convert_frozen_batchnorm, '__wrapped__'):
        kind.convert_frozen_batchnorm = classmethod(_freeze_ours(kind.convert_frozen_batchnorm.__func__))


def guard_norm_builders():
    """Wrap ``build_norm_layer`` of the hosts that are imported."""
    for name in ('mmcv.cnn.bricks.norm', 'mmpretrain.models.utils.norm'):
        build = getattr(sys.modules.get(name), 'build_norm_layer', None)
        if build is not None and not hasattr(build, '__wrapped__'):
            rebind(build, _with_own_eps(build))


def _with_own_eps(build):

    @functools.wraps(build)
    def guarded(cfg, *args, **kwargs):
        built = build(cfg, *args, **kwargs)
        layer = built[1] if isinstance(built, tuple) else built  # mmcv's name and layer, mmpretrain's layer
        if isinstance(layer, (PlaneNorm, BatchFreeNorm)) and layer.own_eps is not None and 'eps' not in cfg:
            layer.eps = layer.own_eps
        return built

    return guarded


def _freeze_ours(convert):

    @functools.wraps(convert)
    def guarded(cls, module):
        ours = freeze_norms(module, lambda _, layer: isinstance(layer, PlaneNorm) and not layer.frozen)
        kinds = {type(module.get_submodule(name)).__name__ for name in ours}
        if kinds:
            warn_once(f'convert_frozen_batchnorm makes {", ".join(sorted(kinds))} frozen, not FrozenBatchNorm2d')
        return leave_ours_alone(functools.partial(convert, cls), say=False)(module)

    return guarded


def _has_ours(module):
    return any(isinstance(m, (PlaneNorm, PerLevel)) for m in module.modules())


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
        elif any(isinstance(module, CONVOLUTIONS) for module in model.modules()):
            warn_once(
                'efficient_conv_bn_eval stays off for a model with ConvMABN or ConvWN: their weights are computed'
            )
        else:
            turn_on(model)

    return guarded


def _not_for_ours(turn_on):

    @functools.wraps(turn_on)
    def guarded(self, efficient_conv_bn_eval=True):
        ours = isinstance(self.norm, PlaneNorm) and not isinstance(self.norm, FrozenBN)
        if efficient_conv_bn_eval and ours:
            warn_once(f'efficient_conv_bn_eval stays off for {type(self.norm).__name__}: not a plain BatchNorm')
        computed = isinstance(self.conv, CONVOLUTIONS)
        if efficient_conv_bn_eval and computed:
            warn_once(f'efficient_conv_bn_eval stays off behind {type(self.conv).__name__}: its weight is computed')
        turn_on(self, efficient_conv_bn_eval and not ours and not computed)

    return guarded


def _saying_what_is_not_zero(init):

    @functools.wraps(init)
    def guarded(module, val, *args, **kwargs):
        init(module, val, *args, **kwargs)
        why = getattr(module, 'why_not_zero', '')
        if val == 0 and why:
            warn_once(
                f'{type(module).__name__}: its weight is set to 0, as zero_init_residual=True does, and its output is '
                f'not 0: {why}. The block does not start as the identity: set zero_init_residual=False in the backbone'
            )

    return guarded


def _of_one_level(add_params):

    @functools.wraps(add_params)
    def guarded(self, params, module, *args, **kwargs):
        add_params(self, params, module[0] if isinstance(module, PerLevel) else module, *args, **kwargs)

    return guarded
