"""mmnorm: normalization layers and residual blocks of five papers for OpenMMLab.

``import mmnorm`` (in a config: ``custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)``) registers
every name; see mmnorm/registry.py.
"""
from importlib.util import find_spec

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import is_installed

from . import guards, panoptic
from .fuse import Fused, fuse_conv_norm
from .norms import estimate_offline, harden, ratios
from .registry import register_all
from .zoo import inherit

__version__ = '0.1.0'
__all__ = ['Fused', 'estimate_offline', 'fuse_conv_norm', 'harden', 'ratios']

MODULE2PACKAGE.setdefault('mmnorm', 'mmnorm')  # for mmengine.hub.get_config; _base_ has zoo/inherit.py
# `_base_ = 'mmseg::...'` looks for a distribution that the onedl set does not carry; the module's own name does
if find_spec('mmseg') is not None and not is_installed(MODULE2PACKAGE['mmseg']):
    MODULE2PACKAGE['mmseg'] = 'mmseg'

inherit.install()
panoptic.install()
register_all()
guards.install()
