"""Every name that a config can use, and where it is registered.

Normalizers, convolutions, hooks, the initializer and our own ShuffleNetV2 go to mmengine's root registries, which every
other OpenMMLab project falls back on; twins of backbones to the registries of mmdet, mmseg and mmpretrain, when
something is first looked up there. Each host may be missing.

A name that a project has given to a class of its own stays the project's, registered before ours or after, with a
warning. Ours has its full name then (``type='mmnorm.norms.SN'``). Of what the hosts ship, ours takes the place.
"""

import functools
import logging
from importlib import import_module
from importlib.util import find_spec

from mmengine.registry import HOOKS as HOOK_REGISTRY
from mmengine.registry import MODELS, WEIGHT_INITIALIZERS, Registry

from mmnorm import statistics
from mmnorm.blocks import CONVOLUTIONS
from mmnorm.norms import NORMS
from mmnorm.norms.checks import warn_once

from . import guards, hooks, padding, sparsity_hook, steps_hook, weights_hook
from .activations import noticing_relus
from .levels import PerLevelFromConfig, counting_levels
from .pretrained import PretrainedWithoutNorms

HOOKS = {
    hook.__name__: hook
    for hook in (
        hooks.CheckpointedStatisticsHook,
        hooks.EstimationShiftHook,
        hooks.ListNormsHook,
        hooks.RecollectHook,
        hooks.StopOnNaNHook,
        hooks.SyncStatisticsHook,
        sparsity_hook.SparsestmaxHook,
        steps_hook.CountStepsHook,
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
    mmpretrain={
        'mmnorm.openmmlab.mmpretrain_models': (
            'XBNResNet',
            'XBNResNet_CIFAR',
            'XBNResNetV1c',
            'XBNResNetV1d',
            'XBNResNeXt',
            'XBNRegNet',
            'XBNMobileNetV2',
            'XBNShuffleNetV2',
        ),
    },
)
_HOSTS = ('mmengine', 'mmcv', *HOST_MODELS)
_logger = logging.getLogger('mmnorm')


def install() -> None:
    """Register everything that the installed hosts can use; called once, by ``import mmnorm``."""
    Registry._register_module = _what_is_a_projects_stays(Registry._register_module)
    for name, norm in NORMS.items():
        _register(MODELS, norm, name)
    _register(MODELS, PerLevelFromConfig, 'PerLevel')
    for convolution in CONVOLUTIONS:
        _register(MODELS, convolution)
    for name, hook in HOOKS.items():
        _register(HOOK_REGISTRY, hook)
        setattr(statistics, name, hook)  # where configs of earlier versions, and of their work dirs, have it
    _register(WEIGHT_INITIALIZERS, PretrainedWithoutNorms)
    if find_spec('mmcv') is not None:
        from .shufflenet_v2 import ShuffleNetV2, XBNShuffleNetV2

        for backbone in (ShuffleNetV2, XBNShuffleNetV2):
            _register(MODELS, backbone)
    for host in HOST_MODELS:
        try:
            registry = import_module(f'{host}.registry').MODELS
        except (ImportError, AssertionError) as error:  # an mmdet beside the wrong mmcv fails by an assertion
            _say_left_out(host, error)
            continue
        if hasattr(registry.module_dict.get('FrozenBN'), 'convert_frozen_batchnorm'):
            guards.guard_frozen_batchnorm(registry.module_dict['FrozenBN'])
        # a location that is imported after the host's own, when a name is first looked up
        registry._locations.append(f'{__package__}.{host}_names')
        registry._imported = False
    _watch_builds(MODELS)


def _watch_builds(registry):
    """In what this registry and those below it build; registries that are made later inherit the function."""
    registry.build_func = noticing_relus(counting_levels(registry.build_func))
    for child in registry.children.values():
        _watch_builds(child)


def register_host(host: str) -> None:
    """Register our models for a host; called by the import locations that :func:`install` has added."""
    registry = import_module(f'{host}.registry').MODELS
    guards.guard_norm_builders()
    try:
        models = [getattr(import_module(module), name) for module, names in HOST_MODELS[host].items() for name in names]
    except (ImportError, AssertionError) as error:
        _say_left_out(host, error)
        return
    for model in models:
        _register(registry, model)
    for name, norm in NORMS.items():
        if name in registry.module_dict:
            # mmdet has a FrozenBN that computes the same but is no _BatchNorm; in its scope it would win over ours
            _register(registry, norm, name)


def _register(registry, ours, name=None):
    """Register a class of ours, unless the name is that of a project's class there, and say if it is, or is below."""
    name = name or ours.__name__
    held = registry.module_dict.get(name)
    for theirs in (held, *(child.module_dict.get(name) for child in registry.children.values())):
        if _is_a_projects(theirs):
            _say_kept(name, theirs, ours)
    if not _is_a_projects(held):
        registry.register_module(name=name, module=ours, force=True)


def _what_is_a_projects_stays(register):
    """Have a registry take a project's class under a name of ours, and guard mmdet's FrozenBatchNorm2d."""

    @functools.wraps(register)
    def guarded(self, module, module_name=None, force=False):
        if hasattr(module, 'convert_frozen_batchnorm'):
            guards.guard_frozen_batchnorm(module)
        names = module_name or getattr(module, '__name__', None)
        for name in [names] if isinstance(names, str) else names or []:
            ours = self._module_dict.get(name, self._get_root_registry()._module_dict.get(name))
            clashes = _top_package(ours) == 'mmnorm' and _is_a_projects(module)
            if clashes:
                _say_kept(name, module, ours)
            register(self, module, name, force or clashes)

    return guarded


def _top_package(module):
    return getattr(module, '__module__', '').partition('.')[0]


def _is_a_projects(module):
    """Whether a registered class, or function, is neither ours nor one that a host ships."""
    return module is not None and _top_package(module) not in ('mmnorm', *_HOSTS)


def _say_kept(name, theirs, ours):
    theirs, ours = (f'{kind.__module__}.{getattr(kind, "__qualname__", kind)}' for kind in (theirs, ours))
    warn_once(
        f'{name} is {theirs} in configs, since a project has registered that. The class of mmnorm of that name is '
        f"type='{ours}' there; or register yours under another name"
    )


def _say_left_out(host, error):
    broken = find_spec(host) is not None
    why, level = (f'does not import ({error})', logging.WARNING) if broken else ('is not installed', logging.INFO)
    left_out = ', '.join(name for names in HOST_MODELS[host].values() for name in names)
    _logger.log(level, f'mmnorm: {host} {why}, left out: {left_out}')
