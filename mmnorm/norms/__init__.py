"""The normalizers, one file per paper or baseline, each a few lines on the moment plane. They need torch alone."""

from .base import PlaneNorm
from .batch_free import BatchFreeNorm
from .bcn import BCN, SyncBCN
from .bgn import BGN, SyncBGN
from .brn import BRN
from .bw import BW, SyncBW
from .cbn import CBN
from .estimate import estimate_offline
from .evalnorm import EN, SyncEN
from .frn import FRN, TLU
from .frozen_bn import FrozenBN
from .gbgn import GBGN
from .gw import GW
from .ibn import IBN
from .iebn import IEBN, SyncIEBN
from .ilm import ILM
from .levels import PerLevel, count_levels
from .mabn import MABN
from .mixture import harden, ratios
from .pn import PN
from .rbn import RBN, SyncRBN
from .sn import SN, SyncSN
from .ssn import SSN, SyncSSN, set_sparsity
from .steps import count_steps
from .sw import SW, SyncSW

#: Every normalizer by its name, which is that of its class.
NORMS = {
    norm.__name__: norm
    for norm in (
        *(FrozenBN, SN, SyncSN, RBN, SyncRBN, EN, SyncEN, BGN, SyncBGN, GBGN, PN, BRN, GW, IBN),
        *(FRN, IEBN, SyncIEBN, BCN, SyncBCN, ILM, SSN, SyncSSN, CBN, MABN),
        *(BW, SyncBW, SW, SyncSW),
    )
}
#: Normalizers to their twins whose batch statistics are those of all ranks.
SYNC_TWINS = {NORMS[name.removeprefix('Sync')]: twin for name, twin in NORMS.items() if name.startswith('Sync')}
#: Marks in state dicts (:mod:`mmnorm.norms.marks`) to the first norm that has them.
MARKS = {mark: name for name, norm in reversed(NORMS.items()) for mark in norm(1).marks()}
#: What norms keep in a state dict beside the tensors of BN and GN, to the first norm that does.
OWN_TENSORS = MARKS | {leaf: name for name, norm in reversed(NORMS.items()) for leaf in norm.added_to_bn()}

__all__ = [
    'BCN',
    'BGN',
    'BRN',
    'BW',
    'CBN',
    'EN',
    'FRN',
    'GBGN',
    'GW',
    'IBN',
    'IEBN',
    'ILM',
    'MABN',
    'MARKS',
    'NORMS',
    'OWN_TENSORS',
    'PN',
    'PerLevel',
    'RBN',
    'SN',
    'SSN',
    'SW',
    'SYNC_TWINS',
    'TLU',
    'BatchFreeNorm',
    'FrozenBN',
    'PlaneNorm',
    'SyncBCN',
    'SyncBGN',
    'SyncBW',
    'SyncEN',
    'SyncIEBN',
    'SyncRBN',
    'SyncSN',
    'SyncSSN',
    'SyncSW',
    'count_levels',
    'count_steps',
    'estimate_offline',
    'harden',
    'ratios',
    'set_sparsity',
]
