"""Data sets that need no download."""

from .digits import DigitsOptions, make_digits
from .options import CLASSIFICATION

__all__ = ['CLASSIFICATION', 'DigitsOptions', 'make_digits']
