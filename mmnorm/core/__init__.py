"""All that touches elements, :func:`normalize`, and what pools the moment plane over a scope or over ranks."""

from .elements import spread
from .plane import like, moments, normalize, recomputed, spelled_out
from .ranks import neighbors, peers_of, set_step
from .scopes import pool, pool_ranks
from .whitening import whiten

__all__ = [
    'like',
    'moments',
    'neighbors',
    'normalize',
    'peers_of',
    'pool',
    'pool_ranks',
    'recomputed',
    'set_step',
    'spelled_out',
    'spread',
    'whiten',
]
