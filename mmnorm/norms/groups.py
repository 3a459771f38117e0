"""Numbers of groups, and BN's statistics pooled over groups (paper bgn)."""

import numpy as np
import torch
from torch import Tensor

from .arguments import integer, one_of
from .base import PlaneNorm
from .checks import check_groups, warn_once

#: Number of groups for a number of images per GPU (bgn, Table 2).
GROUPS_OF_BATCH_SIZE = {2: 1, 4: 2, 8: 16, 16: 64, 32: 128, 64: 256, 128: 512}


#: What a number of groups of channels may be.
NUM_GROUPS = integer(1) | one_of('auto')


def cut_channels(
    where: str,
    channels: int,
    num_groups: int | str = 'auto',
    channels_per_group: int | None = None,
    most: int = 64,
    argument: str = 'num_groups',
) -> int:
    """Number of groups to cut a layer's channels into.

    Args:
        where (str): Names the layer in errors.
        channels (int): Of the layer.
        num_groups (int or str): So many, or as many as channels if these are fewer; or 'auto', the largest divisor of
            the channels up to ``most``.
        channels_per_group (int or None): Instead of ``num_groups``; all channels if these are fewer.
        most (int): The layer's usual number.
        argument (str): What ``num_groups`` is called there.

    Raises:
        ValueError: Both are given, or the groups do not divide the channels: the message names what would do.
    """
    groups = NUM_GROUPS.check(where, argument, num_groups)
    if channels_per_group is None:
        if groups == 'auto':
            return max(d for d in range(1, min(most, channels) + 1) if channels % d == 0)
        groups = min(groups, channels)
        check_groups(where, groups, channels, argument)
        return groups
    if groups != 'auto':
        raise ValueError(
            f'{where}: {argument}={groups} and channels_per_group={channels_per_group} say the same; leave one '
            f"out, or write {argument}='auto' where a config inherits it"
        )
    size = min(integer(1).check(where, 'channels_per_group', channels_per_group), channels)
    check_groups(where, size, channels, 'channels_per_group')
    return channels // size


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
    warn_once(
        f'{type(layer).__name__}: a BN checkpoint is loaded; its running statistics are pooled over the '
        'groups, so that it computes something else than it did with BN.'
    )
    return tensors | dict(running_mean=pooled, running_var=(share * (var + (mean - pooled[:, None]).square())).sum(1))
