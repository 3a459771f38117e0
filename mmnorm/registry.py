"""Every name that a config can use.

Normalizers, hooks, the initializer and our own ShuffleNetV2 go to mmengine's root registries, which every other
OpenMMLab project falls back on; twins of backbones to the registries of mmdet and mmseg. Each of the two may be
missing.
"""
from importlib import import_module
from importlib.util import find_spec
from logging import INFO, WARNING

from mmengine.logging import print_log
from mmengine.registry import HOOKS as HOOK_REGISTRY
from mmengine.registry import MODELS, WEIGHT_INITIALIZERS

from mmnorm import norms, statistics
from mmnorm.blocks import PretrainedWithoutNorms, ShuffleNetV2, XBNShuffleNetV2

NORMS = ('FrozenBN', 'SN', 'SyncSN', 'RBN', 'SyncRBN', 'EN', 'SyncEN', 'BGN', 'SyncBGN', 'GBGN', 'PN', 'BRN', 'GW',
         'IBN')
HOOKS = ('EstimationShiftHook', 'NormWeightsHook', 'RecollectHook', 'SyncStatisticsHook')
#: Host -> module of ours -> what of it goes to the host's registry.
HOST_MODELS = dict(
    mmdet={
        'mmnorm.blocks.mmdet_backbones': ('XBNResNet', 'XBNResNetV1d', 'XBNResNeXt', 'XBNRegNet', 'XBNMobileNetV2'),
        'mmnorm.detectors': ('PanopticFPNWithInstances', ),
    },
    mmseg={
        'mmnorm.blocks.mmseg_backbones': ('XBNResNet', 'XBNResNetV1c', 'XBNResNetV1d', 'XBNResNeXt', 'XBNMobileNetV2'),
    })


def register_all():
    """Register everything that the installed hosts can use; called once, by ``import mmnorm``."""
    for name in NORMS:
        MODELS.register_module(name=name, module=getattr(norms, name))
    for name in HOOKS:
        HOOK_REGISTRY.register_module(name=name, module=getattr(statistics, name))
    WEIGHT_INITIALIZERS.register_module(module=PretrainedWithoutNorms)
    for backbone in (ShuffleNetV2, XBNShuffleNetV2):
        MODELS.register_module(module=backbone)
    for host, modules in HOST_MODELS.items():
        try:
            registry = import_module(f'{host}.registry').MODELS
            models = [getattr(import_module(module), name) for module, names in modules.items() for name in names]
        except (ImportError, AssertionError) as error:  # an mmdet beside the wrong mmcv fails by an assertion
            broken = find_spec(host) is not None
            why, level = (f'does not import ({error})', WARNING) if broken else ('is not installed', INFO)
            left_out = ', '.join(name for names in modules.values() for name in names)
            print_log(f'mmnorm: {host} {why}, left out: {left_out}', 'current', level)
            continue
        for model in models:
            registry.register_module(module=model)
        for name in NORMS:
            if name in registry.module_dict:
                # mmdet has a FrozenBN that computes the same but is no _BatchNorm; in its scope it would win over ours
                registry.register_module(name=name, module=getattr(norms, name), force=True)
