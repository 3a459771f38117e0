"""Checkpoints from other code and to it, and from one norm to another."""

from .conversion import TARGETS, Report, convert_file
from .layouts import LAYOUTS, find_layout, take_backbone, unwrap
from .tensors import convert_norms, norm_layers

__all__ = [
    'LAYOUTS',
    'TARGETS',
    'Report',
    'convert_file',
    'convert_norms',
    'find_layout',
    'norm_layers',
    'take_backbone',
    'unwrap',
]
