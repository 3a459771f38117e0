"""The normalizers, one file per paper or baseline, each a few lines on the moment plane."""
from .bgn import BGN, GBGN, SyncBGN
from .brn import BRN
from .evalnorm import EN, SyncEN, estimate_offline
from .frozen_bn import FrozenBN
from .gw import GW
from .ibn import IBN
from .pn import PN
from .rbn import RBN, SyncRBN
from .sn import SN, SyncSN, harden, ratios

__all__ = ['BGN', 'BRN', 'EN', 'GBGN', 'GW', 'IBN', 'PN', 'RBN', 'SN', 'FrozenBN', 'SyncBGN', 'SyncEN', 'SyncRBN',
           'SyncSN', 'estimate_offline', 'harden', 'ratios']
