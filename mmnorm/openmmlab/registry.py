"""Every name that a config can use, and where it is registered.

Normalizers, hooks, the initializer and our own ShuffleNetV2 go to mmengine's root registries, which every other
OpenMMLab project falls back on; twins of backbones to the registries of mmdet and mmseg, when something is first looked
up there. Each host may be missing.
"""

import logging
from importlib import import_module
from importlib.util import find_spec

from mmengine.registry import HOOKS as HOOK_REGISTRY
from mmengine.registry import MODELS, WEIGHT_INITIALIZERS

from mmnorm import statistics
from mmnorm.norms import NORMS

from . import hooks, padding, weights_hook
from .pretrained import PretrainedWithoutNorms

HOOKS = {
    hook.__name__: hook
    for hook in (
        hooks.EstimationShiftHook,
        hooks.ListNormsHook,
        hooks.RecollectHook,
        hooks.SyncStatisticsHook,
        weights_hook.NormWeightsHook,
        padding.ValidRegionHook,
    )
}
#: Host -> module of ours -> what of it goes to the host's registry.
HOST_MODELS = dict(
    mmdet={
        'mmnorm.openmmlab.mmdet_models': ('XBNResNet', 'XBNResNetV1d', 'XBNResNeXt', 'XBNRegNet', 'XBNMobileNetV2'),
        'mmnorm.openmmlab.detectors': ('PanopticFPNWithInstances',),
    },
    mmseg={
        'mmnorm.openmmlab.mmseg_models': ('XBNResNet', 'XBNResNetV1c', 'XBNResNetV1d', 'XBNResNeXt', 'XBNMobileNetV2'),
    },
)
_logger = logging.getLogger('mmnorm')


def install() -> None:
    """Register everything that the installed hosts can use; called once, by ``import mmnorm``."""
    for name, norm in NORMS.items():
        MODELS.register_module(name=name, module=norm)
    for name, hook in HOOKS.items():
        HOOK_REGISTRY.register_module(name=name, module=hook)
        setattr(statistics, name, hook)  # where configs of earlier versions, and of their work dirs, have it
    WEIGHT_INITIALIZERS.register_module(module=PretrainedWithoutNorms)
    if find_spec('mmcv') is not None:
        from .shufflenet_v2 import ShuffleNetV2, XBNShuffleNetV2

        for backbone in (ShuffleNetV2, XBNShuffleNetV2):
            MODELS.register_module(module=backbone)
    for host in HOST_MODELS:
        try:
            registry = import_module(f'{host}.registry').MODELS
        except (ImportError, AssertionError) as error:  # an mmdet beside the wrong mmcv fails by an assertion
            _say_left_out(host, error)
            continue
        # a location that is imported after the host's own, when a name is first looked up
        registry._locations.append(f'{__package__}.{host}_names')
        registry._imported = False


def register_host(host: str) -> None:
    """Register our models for a host; called by the import locations that :func:`install` has added."""
    registry = import_module(f'{host}.registry').MODELS
    try:
        models = [getattr(import_module(module), name) for module, names in HOST_MODELS[host].items() for name in names]
    except (ImportError, AssertionError) as error:
        _say_left_out(host, error)
        return
    for model in models:
        registry.register_module(module=model)
    for name, norm in NORMS.items():
        if name in registry.module_dict:
            # mmdet has a FrozenBN that computes the same but is no _BatchNorm; in its scope it would win over ours
            registry.register_module(name=name, module=norm, force=True)


def _say_left_out(host, error):
    broken = find_spec(host) is not None
    why, level = (f'does not import ({error})', logging.WARNING) if broken else ('is not installed', logging.INFO)
    left_out = ', '.join(name for names in HOST_MODELS[host].values() for name in names)
    _logger.log(level, f'mmnorm: {host} {why}, left out: {left_out}')
