"""All that touches elements, :func:`normalize`, and what pools the moment plane over a scope or over ranks."""

from .elements import spread
from .plane import first_derivative_only, like, moments, normalize, spelled_out
from .ranks import neighbors, peers_of, set_step
from .scopes import pool, pool_ranks

__all__ = [
    'first_derivative_only',
    'like',
    'moments',
    'neighbors',
    'normalize',
    'peers_of',
    'pool',
    'pool_ranks',
    'set_step',
    'spelled_out',
    'spread',
]
