"""Numbers of groups, and BN's statistics pooled over groups (paper bgn)."""

import numpy as np
import torch
from torch import Tensor

from .base import PlaneNorm
from .checks import warn_once

#: Number of groups for a number of images per GPU (bgn, Table 2).
GROUPS_OF_BATCH_SIZE = {2: 1, 4: 2, 8: 16, 16: 64, 32: 128, 64: 256, 128: 512}


def groups_for(batch_size: int) -> int:
    """Number of groups by the rule of bgn's Table 2, interpolated in logarithms and held beyond its ends.

    Args:
        batch_size (int): Images per GPU.
    """
    sizes, groups = np.log2(list(GROUPS_OF_BATCH_SIZE.items())).T
    return round(2 ** np.interp(np.log2(batch_size), sizes, groups))


def pooled_over_groups(layer: PlaneNorm, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """BN's tensors with running statistics, one per channel, pooled over the groups of a layer.

    A group is the average of the channels that it overlaps, by how much it does.
    """
    (groups,), channels, names = layer.statistics_shape, layer.num_features, ('running_mean', 'running_var')
    if groups == channels or any(name not in tensors or tensors[name].numel() != channels for name in names):
        return tensors
    mean, var = (tensors[name].flatten() for name in names)
    lower, group_lower = (torch.arange(n).to(mean) / n for n in (channels, groups))
    upper, group_upper = lower + 1 / channels, group_lower + 1 / groups
    overlap = (torch.minimum(upper, group_upper[:, None]) - torch.maximum(lower, group_lower[:, None])).clamp(min=0)
    share = overlap / overlap.sum(1, keepdim=True)
    pooled = share @ mean
    warn_once(f'{type(layer).__name__}: a BN checkpoint is loaded; its running statistics are pooled over the groups.')
    return tensors | dict(running_mean=pooled, running_var=(share * (var + (mean - pooled[:, None]).square())).sum(1))
