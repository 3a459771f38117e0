"""Batch Group Normalization, and its baseline Generalised Batch Group Normalization (paper bgn)."""
from math import gcd, prod

import numpy as np
import torch
from torch.nn import functional as F

from mmnorm.core import like, normalize, pool, spelled_out

from .base import PlaneNorm, check_groups, warn_once

#: Number of groups for a number of images per GPU (bgn, Table 2).
GROUPS_OF_BATCH_SIZE = {2: 1, 4: 2, 8: 16, 16: 64, 32: 128, 64: 256, 128: 512}


def groups_for(batch_size):
    """Number of groups by the rule of bgn's Table 2, interpolated in logarithms and held beyond its ends.

    Args:
        batch_size (int): Images per GPU.
    """
    sizes, groups = np.log2(list(GROUPS_OF_BATCH_SIZE.items())).T
    return round(2 ** np.interp(np.log2(batch_size), sizes, groups))


class BGN(PlaneNorm):
    """Batch Group Normalization (bgn, Eq. 6 to 9): statistics over the batch and a group of a sample's elements.

    Channels and positions of a sample are merged into D = C * L elements and cut into G contiguous groups; element d
    belongs to group floor(d * G / D), for every image size. Gamma and beta are per channel. Running statistics have
    shape (G,) and serve in evaluation. G = C is BN; G = 1 is LN at one sample.

    It is as fast as BN when G divides C, or D in runs of some length; else several times slower. A BN checkpoint loads:
    its running statistics are pooled over the groups.

    Args:
        num_features (int): Number of channels C.
        eps (float): Added to the variance. Default 1e-5.
        momentum (float or None): As in BN. Default 0.1.
        num_groups (int or str): G, or 'auto' for the rule of bgn's Table 2, by ``batch_size``. Default 1, what that
            rule has for 2 images per GPU.
        batch_size (int): Images per GPU, for ``num_groups='auto'``.
        frozen (bool): See :class:`~mmnorm.norms.base.PlaneNorm`.

    Raises:
        ValueError: 'auto' without ``batch_size``; more groups than a sample has elements (in forward).
    """

    def __init__(self, num_features, eps=1e-5, momentum=0.1, num_groups=1, batch_size=None, frozen=False):
        name = type(self).__name__
        if num_groups == 'auto':
            if batch_size is None:
                raise ValueError(f"{name}: num_groups='auto' needs batch_size, the images per GPU, to choose by")
            num_groups = groups_for(batch_size)
        if not isinstance(num_groups, int) or num_groups < 1:
            raise ValueError(f"{name}: num_groups={num_groups!r}; a positive integer or 'auto' would do")
        self.num_groups = num_groups
        super().__init__(num_features, eps, momentum, frozen)

    def _reset_control_parameters(self):
        self.running_mean = torch.zeros(self.num_groups)
        self.running_var = torch.ones(self.num_groups)

    def forward(self, x):
        self._check_input(x)
        self._note_norm_eval()
        elements = prod(x.shape[1:])
        if self.num_groups > elements > 0:
            raise ValueError(f'{type(self).__name__}: num_groups={self.num_groups}, but a sample of shape '
                             f'{tuple(x.shape[1:])} has only {elements} elements; num_groups up to that would do')
        runs = self._runs(x)
        return self._by_runs(x, runs) if runs else self._by_index(x)

    @torch.no_grad()
    def tracked_moments(self, x):
        runs = self._runs(x)
        if not runs:
            return self._indexed_moments(x.flatten(1).double(), self._group_index(x))
        return super().tracked_moments(x.reshape(len(x), self.num_features * runs, -1))

    def _runs(self, x):
        """Number of equal runs that each channel is cut into so that each is in one group; None if there is none."""
        if self.num_features % self.num_groups == 0:
            return 1
        positions, elements = prod(x.shape[2:]), prod(x.shape[1:])
        if elements % self.num_groups or spelled_out():
            return None
        return positions // gcd(positions, elements // self.num_groups)

    def _by_runs(self, x, runs):
        """On a plane of equal runs of elements, ``runs`` a channel, each in one channel and in one group."""
        weight, bias = (p.repeat_interleave(runs) if runs > 1 else p for p in (self.weight, self.bias))
        x_runs = x.reshape(x.shape[0], len(weight), prod(x.shape[2:]) // runs)
        per_group = len(weight) // self.num_groups
        if not self.training:
            mean, var = (s.repeat_interleave(per_group) for s in (self.running_mean, self.running_var))
            return like(F.batch_norm(x_runs, mean, var, weight, bias, eps=self.eps), x)

        def statistics(mean, var, count):
            mean, var = (plane.reshape(-1, self.num_groups, per_group) for plane in (mean, var))
            mean, var = self.batch_statistics(mean, var, count, (0, 2))
            return mean.repeat_interleave(per_group), var.repeat_interleave(per_group), weight, bias

        return like(normalize(x_runs, statistics, self.eps), x)

    def _by_index(self, x):
        """By the group index of each element: for groups that differ in size, and for exporters, of any image size."""
        flat = x.flatten(1).to(torch.promote_types(x.dtype, torch.float32))
        index = self._group_index(x)
        mean, var = self.running_mean, self.running_var
        if self.training and (len(x) or self._ranks()):
            mean, var = self.shared_and_tracked(*self._indexed_moments(flat, index), len(x))
        y = ((flat - mean[index]) * torch.rsqrt(var + self.eps)[index]).reshape(x.shape)
        weight, bias = (p.view(-1, *[1] * (x.dim() - 2)) for p in (self.weight, self.bias))
        return like((y * weight + bias).to(x.dtype), x)

    def _one_value_each(self, x):
        return x.numel() == self.num_groups

    def _group_index(self, x):
        elements = prod(x.shape[1:])
        return torch.arange(elements, device=x.device) * self.num_groups // elements

    def _indexed_moments(self, flat, index):
        """Mean, biased variance and number of the elements of each group, (G,), of (N, D) with their groups."""
        empty = flat.new_zeros(self.num_groups)
        sizes = len(flat) * empty.index_add(0, index, flat.new_ones(flat.shape[1]))
        mean = empty.index_add(0, index, flat.sum(0)) / sizes.clamp(min=1)
        return mean, empty.index_add(0, index, (flat - mean[index]).square().sum(0)) / sizes.clamp(min=1), sizes

    def _load_from_state_dict(self, state_dict, prefix, *args):
        _pool_bn_statistics(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self):
        return f'{super().extra_repr()}, num_groups={self.num_groups}'


def _pool_bn_statistics(layer, state_dict, prefix):
    """Pool the running statistics of a BN checkpoint, one per channel, over the layer's groups."""
    keys = prefix + 'running_mean', prefix + 'running_var'
    groups, channels = layer.running_mean.numel(), layer.num_features
    if groups == channels or any(key not in state_dict or state_dict[key].numel() != channels for key in keys):
        return
    mean, var = (state_dict[key].flatten() for key in keys)
    # a group is the average of the channels that it overlaps, by how much it does
    lower, group_lower = (torch.arange(n).to(mean) / n for n in (channels, groups))
    upper, group_upper = lower + 1 / channels, group_lower + 1 / groups
    overlap = (torch.minimum(upper, group_upper[:, None]) - torch.maximum(lower, group_lower[:, None])).clamp(min=0)
    share = overlap / overlap.sum(1, keepdim=True)
    pooled = share @ mean
    state_dict[keys[0]] = pooled
    state_dict[keys[1]] = (share * (var + (mean - pooled[:, None]).square())).sum(1)
    warn_once(f'{type(layer).__name__}: a BN checkpoint is loaded; its running statistics are pooled over the groups.')


class SyncBGN(BGN):
    """:class:`BGN` with its statistics over all ranks. For arguments see there."""

    sync = True


class GBGN(PlaneNorm):
    """Generalised Batch Group Normalization (bgn's baseline): statistics over groups of samples and of channels.

    Running statistics have shape (channel_groups,), averaged over the groups of samples, and serve in evaluation. One
    group of samples with C groups of channels is BN.

    Args:
        num_features (int): Number of channels C.
        eps (float): Added to the variance. Default 1e-5.
        momentum (float or None): As in BN. Default 0.1.
        batch_groups (int or str): Cut the batch into that many near-equal runs, or 'sample' for one per sample:
            GN(channel_groups), without running statistics. Default 1.
        channel_groups (int): Cut the channels into that many groups, at most C. Default 32, as in bgn's Table 2.
        frozen (bool): See :class:`~mmnorm.norms.base.PlaneNorm`.

    Raises:
        ValueError: ``channel_groups`` does not divide the channels.
    """

    def __init__(self, num_features, eps=1e-5, momentum=0.1, batch_groups=1, channel_groups=32, frozen=False):
        if batch_groups != 'sample' and not (isinstance(batch_groups, int) and batch_groups > 0):
            raise ValueError(f"{type(self).__name__}: batch_groups={batch_groups!r}; a positive integer or 'sample' "
                             'would do')
        self.batch_groups, self.channel_groups = batch_groups, min(channel_groups, num_features)
        super().__init__(num_features, eps, momentum, frozen)

    def _reset_control_parameters(self):
        check_groups(self, self.channel_groups, self.num_features, 'channel_groups')
        if self.batch_groups == 'sample':
            self.track_running_stats = False
            self.running_mean = self.running_var = self.num_batches_tracked = None
        else:
            self.running_mean = torch.zeros(self.channel_groups)
            self.running_var = torch.ones(self.channel_groups)

    def forward(self, x):
        if self.batch_groups == 'sample' or self.training and len(x):
            return super().forward(x)
        self._check_input(x)
        self._note_norm_eval()
        mean, var = (self._per_channel(s) for s in (self.running_mean, self.running_var))
        return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps)

    def statistics(self, mean, var, count):
        samples = mean.shape[0]
        shape = samples, self.channel_groups, self.num_features // self.channel_groups
        mean, var = mean.reshape(shape), var.reshape(shape)
        if self.batch_groups == 'sample':
            mean, var = pool(mean, var, 2)
        else:
            runs = min(self.batch_groups, samples)
            mean, var = self.run_statistics(mean.tensor_split(runs), var.tensor_split(runs), count, (0, 2))
        return self._per_channel(mean[..., 0]), self._per_channel(var[..., 0]), self.weight, self.bias

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if self.running_mean is not None:
            _pool_bn_statistics(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self):
        return f'{super().extra_repr()}, batch_groups={self.batch_groups}, channel_groups={self.channel_groups}'

    def _one_value_each(self, x):
        if self.batch_groups == 'sample':
            return False
        return 0 < x.numel() == self.channel_groups * min(self.batch_groups, len(x))

    def _per_channel(self, plane):
        return plane.repeat_interleave(self.num_features // self.channel_groups, -1)
