"""mmnorm: normalization layers and residual blocks of five papers, for PyTorch and for OpenMMLab.

The layers and what works on built networks need torch alone:

    from mmnorm import SN
    layer = SN(64)

``import mmnorm`` wraps the functions of torch that would take these layers for plain BNs
(:mod:`mmnorm.blocks.guards`). Where mmengine is installed, it also registers every name for configs (``custom_imports =
dict(imports=['mmnorm'], allow_failed_imports=False)``); :mod:`mmnorm.openmmlab` lists all that this does.
"""

from importlib.util import find_spec

from .blocks import (
    ConvMABN,
    ConvWN,
    Fused,
    NormLayer,
    compile_norms,
    freeze_norms,
    fuse_conv_norm,
    guards,
    list_norms,
    per_level,
    place_xbn,
    replace_norms,
    update_statistics_once,
    valid_regions,
)
from .core import set_step
from .norms import (
    BCN,
    BGN,
    BRN,
    BW,
    CBN,
    EN,
    FRN,
    GBGN,
    GW,
    IBN,
    IEBN,
    ILM,
    MABN,
    PN,
    RBN,
    SN,
    SSN,
    SW,
    TLU,
    FrozenBN,
    PerLevel,
    SyncBCN,
    SyncBGN,
    SyncBW,
    SyncEN,
    SyncIEBN,
    SyncRBN,
    SyncSN,
    SyncSSN,
    SyncSW,
    count_levels,
    count_steps,
    estimate_offline,
    harden,
    ratios,
    set_sparsity,
)
from .statistics import measure_shift, perturbed, recollect, to_evalnorm

__version__ = '0.1.0'
__all__ = [
    'BCN',
    'BGN',
    'BRN',
    'BW',
    'CBN',
    'ConvMABN',
    'ConvWN',
    'EN',
    'FRN',
    'GBGN',
    'GW',
    'IBN',
    'IEBN',
    'ILM',
    'MABN',
    'PN',
    'RBN',
    'SN',
    'SSN',
    'SW',
    'TLU',
    'FrozenBN',
    'Fused',
    'NormLayer',
    'PerLevel',
    'SyncBCN',
    'SyncBGN',
    'SyncBW',
    'SyncEN',
    'SyncIEBN',
    'SyncRBN',
    'SyncSN',
    'SyncSSN',
    'SyncSW',
    'compile_norms',
    'freeze_norms',
    'count_levels',
    'count_steps',
    'estimate_offline',
    'fuse_conv_norm',
    'harden',
    'list_norms',
    'measure_shift',
    'per_level',
    'perturbed',
    'place_xbn',
    'ratios',
    'recollect',
    'replace_norms',
    'set_sparsity',
    'set_step',
    'to_evalnorm',
    'update_statistics_once',
    'valid_regions',
]

guards.install()
if find_spec('mmengine') is not None:
    from . import openmmlab

    openmmlab.install()
