"""Where normalizers sit in a network: functions over a built network. They need torch alone."""

from .activations import relus_behind_tlu
from .checkpointing import update_statistics_once
from .compiling import compile_norms
from .convolutions import CONVOLUTIONS, ConvMABN, ConvWN
from .fuse import Fused, fuse_conv_norm
from .layers import (
    NormLayer,
    build_norm,
    channels_of,
    freeze_norms,
    is_conv_module,
    is_norm,
    is_plain_bn,
    list_norms,
    norm_layers,
    registered_name,
    replace_norms,
    set_layer,
    summarize_norms,
    type_name,
)
from .levels import per_level
from .regions import padding_readers, valid_regions
from .xbn import GN16, GN64, place_xbn, residual_blocks

__all__ = [
    'CONVOLUTIONS',
    'ConvMABN',
    'ConvWN',
    'GN16',
    'GN64',
    'Fused',
    'NormLayer',
    'build_norm',
    'channels_of',
    'compile_norms',
    'freeze_norms',
    'fuse_conv_norm',
    'is_conv_module',
    'is_norm',
    'is_plain_bn',
    'list_norms',
    'norm_layers',
    'padding_readers',
    'per_level',
    'place_xbn',
    'registered_name',
    'relus_behind_tlu',
    'replace_norms',
    'residual_blocks',
    'set_layer',
    'summarize_norms',
    'type_name',
    'update_statistics_once',
    'valid_regions',
]
