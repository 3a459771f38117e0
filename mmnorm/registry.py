"""Every name that a config can use.

Normalizers and hooks go to mmengine's root registries, which every other OpenMMLab project falls back on; backbones to
the registries of mmdet and mmseg. Each of the two may be missing.
"""
from importlib import import_module
from importlib.util import find_spec
from logging import INFO, WARNING

from mmengine.logging import print_log
from mmengine.registry import HOOKS as HOOK_REGISTRY
from mmengine.registry import MODELS

from mmnorm import norms, statistics

NORMS = ('FrozenBN', 'SN', 'SyncSN', 'RBN', 'SyncRBN', 'EN', 'SyncEN', 'BGN', 'SyncBGN', 'GBGN', 'PN', 'BRN', 'GW',
         'IBN')
HOOKS = ('EstimationShiftHook', 'NormWeightsHook', 'RecollectHook')
BACKBONES = dict(
    mmdet=('XBNResNet', 'XBNResNetV1d', 'XBNResNeXt', 'XBNRegNet'),
    mmseg=('XBNResNet', 'XBNResNetV1c', 'XBNResNetV1d', 'XBNResNeXt'))


def register_all():
    """Register everything that the installed hosts can use; called once, by ``import mmnorm``."""
    for name in NORMS:
        MODELS.register_module(name=name, module=getattr(norms, name))
    for name in HOOKS:
        HOOK_REGISTRY.register_module(name=name, module=getattr(statistics, name))
    for host, names in BACKBONES.items():
        try:
            registry = import_module(f'{host}.registry').MODELS
            backbones = import_module(f'mmnorm.blocks.{host}_backbones')
        except (ImportError, AssertionError) as error:  # an mmdet beside the wrong mmcv fails by an assertion
            broken = find_spec(host) is not None
            why, level = (f'does not import ({error})', WARNING) if broken else ('is not installed', INFO)
            print_log(f'mmnorm: {host} {why}, left out: {", ".join(names)}', 'current', level)
            continue
        for name in names:
            registry.register_module(module=getattr(backbones, name))
        for name in NORMS:
            if name in registry.module_dict:
                # mmdet has a FrozenBN that computes the same but is no _BatchNorm; in its scope it would win over ours
                registry.register_module(name=name, module=getattr(norms, name), force=True)
