"""The normalizers, one file per paper, each a few lines on the moment plane."""
from .frozen_bn import FrozenBN
from .rbn import RBN
from .sn import SN

__all__ = ['FrozenBN', 'RBN', 'SN']
