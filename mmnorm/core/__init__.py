"""The moment plane: the only code that touches elements."""
from .plane import affine, moments, normalize

__all__ = ['affine', 'moments', 'normalize']
