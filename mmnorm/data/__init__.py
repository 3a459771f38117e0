"""Data sets that need no download."""

from .digits import DigitsOptions, make_digits

__all__ = ['DigitsOptions', 'make_digits']
