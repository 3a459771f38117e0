"""All that touches elements, :func:`normalize`, and what pools the moment plane over a scope or over ranks."""

from .backends import spelled_out, use_triton
from .blends import BN, IN, LN, Blend, blend
from .calibrations import MEAN, STD, Calibration, calibrate, calibrated_moments
from .constant import constant_affine
from .elements import spread, statistics_dtype
from .plane import like, moments, normalize, recomputed
from .positions import normalize_positions
from .ranks import Peers, neighbors, peers_of, set_step
from .scopes import of_means, pool, pool_ranks, products
from .tracking import Renorm, Running
from .whitening import row_moments, whiten

__all__ = [
    'BN',
    'IN',
    'LN',
    'MEAN',
    'STD',
    'Blend',
    'Calibration',
    'Peers',
    'Renorm',
    'Running',
    'blend',
    'calibrate',
    'calibrated_moments',
    'constant_affine',
    'like',
    'moments',
    'neighbors',
    'normalize',
    'normalize_positions',
    'of_means',
    'peers_of',
    'pool',
    'pool_ranks',
    'products',
    'recomputed',
    'row_moments',
    'set_step',
    'spelled_out',
    'spread',
    'statistics_dtype',
    'use_triton',
    'whiten',
]
