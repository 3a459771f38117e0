"""Batch Group Normalization: Zhou et al., 2020, https://arxiv.org/abs/2012.02782 (paper bgn)."""

from math import gcd, prod

import torch
from torch.nn import functional as F

from mmnorm.core import BN, like, recomputed, spelled_out, spread

from .arguments import NONE, checked, integer, note_no_effect, one_of
from .base import PlaneNorm
from .checks import called, warn_once
from .groups import groups_for, pooled_over_groups

_GROUPS_OF_GN = 32  # in the configs of mmdet and mmseg


class BGN(PlaneNorm):
    """Batch Group Normalization (bgn, Eq. 6 to 9): statistics over the batch and a group of a sample's elements.

    Channels and positions of a sample are merged into D = C * L elements and cut into G contiguous groups; element d
    belongs to group floor(d * G / D), for every image size. Gamma and beta are per channel. Running statistics have
    shape (G,) and serve in evaluation. G = C is BN; G = 1 is LN at one sample.

    It is as fast as BN when G divides C, or D in runs of some length; else several times slower. A BN checkpoint loads:
    its running statistics are pooled over the groups.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.base.PlaneNorm`.
        num_groups (int or str): G, or 'auto' for the rule of bgn's Table 2, by ``batch_size``. Default 1, what that
            rule has for 2 images per GPU.
        batch_size (int): Images per GPU, for ``num_groups='auto'``.

    Raises:
        ValueError: 'auto' without ``batch_size``; more groups than a sample has elements (in forward).
    """

    @checked(num_groups=integer(1) | one_of('auto'), batch_size=integer(1) | NONE)
    def __init__(
        self, num_features: int, *args, num_groups: int | str = 1, batch_size: int | None = None, **kwargs
    ) -> None:
        name = type(self).__name__
        if num_groups == 'auto':
            if batch_size is None:
                raise ValueError(f"{name}: num_groups='auto' needs batch_size, the images per GPU, to choose by")
            num_groups = groups_for(batch_size)
        elif batch_size is not None:
            note_no_effect(type(self), 'batch_size', "num_groups is not 'auto'")
        if num_groups == _GROUPS_OF_GN:
            warn_once(
                f'{name}: num_groups={num_groups} is what stock configs have for GN, where it means another thing: '
                "these groups are also over the batch and the positions, and 1 is their default, 'auto' the rule of "
                f'the paper. If type alone was changed, leave num_groups out; if {num_groups} is meant, all is well.'
            )
        self.num_groups: int = num_groups  # type: ignore[assignment]  # checked
        super().__init__(num_features, *args, **kwargs)

    @property
    def statistics_shape(self):
        return (self.num_groups,)

    @property
    def sees_padding(self):
        # the group of an element depends on the map's size unless groups are whole channels
        return self.num_features % self.num_groups > 0 or self.running_mean is None

    def normalize(self, x):
        runs = self._runs(x)
        return self._by_runs(x, runs) if runs else self._by_element(x)

    def _by_element(self, x):
        """The definition: by the group of each element. For groups that differ in size, and for exporters."""
        mean, var = self.held_statistics(torch.promote_types(x.dtype, torch.float32))
        if self.by_batch and (x.numel() or self.spans_ranks() or mean is None):
            mean, var = recomputed(self._group_moments, x)
            mean, var = self.shared_and_tracked(mean, var, self._group_sizes(x), len(x))
        return like(recomputed(self._by_group, x, mean, var, self.weight, self.bias), x)

    def _group_of_element(self, x):
        elements = prod(x.shape[1:])
        return torch.arange(elements, device=x.device) * self.num_groups // max(elements, 1)

    def _group_sizes(self, x):
        """Number of the elements of each group, (G,)."""
        group = self._group_of_element(x)
        return group.new_zeros(self.num_groups).index_add(0, group, torch.full_like(group, len(x)))

    def _group_moments(self, x):
        """Mean and biased variance of each group, (G,)."""
        flat, group = x.flatten(1).to(torch.promote_types(x.dtype, torch.float32)), self._group_of_element(x)
        empty, sizes = flat.new_zeros(self.num_groups), self._group_sizes(x).clamp(min=1).to(flat.dtype)
        mean = empty.index_add(0, group, flat.sum(0)) / sizes
        return mean, empty.index_add(0, group, (flat - mean.index_select(0, group)).square().sum(0)) / sizes

    def _by_group(self, x, mean, var, weight, bias):
        flat, group = x.flatten(1), self._group_of_element(x)
        mean, rstd = (plane.index_select(0, group) for plane in (mean, torch.rsqrt(var + self.eps)))
        y = ((flat - mean) * rstd).reshape(x.shape)
        if weight is not None:
            y = y * spread(weight, x)
        if bias is not None:
            y = y + spread(bias, x)
        return y.to(x.dtype)

    # the fast way: on a plane of equal runs of elements, `runs` a channel, each in one channel and in one group

    def _runs(self, x):
        """How many equal runs to cut each channel into so that each is in one group; None if there is no number."""
        if self.num_features % self.num_groups == 0:
            return 1
        positions, elements = prod(x.shape[2:]), prod(x.shape[1:])
        if elements % self.num_groups or not elements or spelled_out():
            return None
        return positions // gcd(positions, elements // self.num_groups)

    def _by_runs(self, x, runs):
        # as it is where it may be: channels last, it would be copied
        x_runs = x if runs == 1 else x.reshape(x.shape[0], self.num_features * runs, prod(x.shape[2:]) // runs)
        per_group = x_runs.shape[1] // self.num_groups
        gamma, beta = (p.repeat_interleave(runs) if runs > 1 and torch.is_tensor(p) else p for p in self.gamma_beta)

        def statistics(mean, var, count):
            mean, var = (plane.reshape(-1, self.num_groups, per_group) for plane in (mean, var))
            mean, var = self.batch_statistics(mean, var, count, (0, 2))
            return mean.repeat_interleave(per_group), var.repeat_interleave(per_group), gamma, beta

        def blend(x_runs):
            weight, bias = (p if torch.is_tensor(p) else None for p in (gamma, beta))
            return self.blended(x_runs, [BN], groups=self.num_groups, weight=weight, bias=bias)

        if self.by_batch:
            return like(self.on_plane(x_runs, statistics, blend), x)
        mean, var = (s.repeat_interleave(per_group) for s in (self.running_mean, self.running_var))
        gamma, beta = (p if torch.is_tensor(p) else None for p in (gamma, beta))
        return like(F.batch_norm(x_runs, mean, var, gamma, beta, eps=self.eps), x)

    # checks, and what other code asks for

    def check(self, x):
        super().check(x)
        elements = prod(x.shape[1:])
        if self.num_groups > elements > 0:
            raise ValueError(
                f'{called(self)}: num_groups={self.num_groups}, but a sample of shape '
                f'{tuple(x.shape[1:])} has only {elements} elements; use at most that many groups'
            )

    @torch.no_grad()
    def tracked_moments(self, x):
        runs = self._runs(x)
        if not runs:
            return *self._group_moments(x.double()), self._group_sizes(x)
        return super().tracked_moments(x.reshape(len(x), self.num_features * runs, -1))

    def from_bn(self, tensors):
        return pooled_over_groups(self, tensors)

    def _one_value_each(self, x):
        return x.numel() == self.num_groups

    def extra_repr(self):
        return f'{super().extra_repr()}, num_groups={self.num_groups}'


class SyncBGN(BGN):
    """:class:`BGN` with its statistics over all ranks. For arguments see there."""

    sync = True
