"""All that touches elements, :func:`normalize`, and what pools the moment plane over a scope or over ranks."""

from .elements import spread
from .plane import first_derivative_only, like, moments, normalize, spelled_out
from .scopes import pool, pool_ranks

__all__ = ['first_derivative_only', 'like', 'moments', 'normalize', 'pool', 'pool_ranks', 'spelled_out', 'spread']
