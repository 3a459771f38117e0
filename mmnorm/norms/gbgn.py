"""Generalized Batch Group Normalization: Summers and Dinneen, ICLR 2020, https://arxiv.org/abs/1906.03548 (of bgn)."""

from typing import Any

from mmnorm.core import BN, pool

from .arguments import checked, integer, one_of
from .base import PlaneNorm
from .groups import NUM_GROUPS, cut_channels, pooled_over_groups


class GBGN(PlaneNorm):
    """Generalized Batch Group Normalization (bgn's baseline): statistics over groups of samples and of channels.

    Running statistics have shape (channel_groups,), averaged over the groups of samples, and serve in evaluation. One
    group of samples with C groups of channels is BN.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.base.PlaneNorm`.
        batch_groups (int or str): Cut the batch into that many near-equal runs, or 'sample' for one per sample:
            GN(channel_groups), without running statistics. Default 1.
        channel_groups (int or str): Cut the channels into that many groups, at most C. Default 'auto': the largest
            divisor of C up to 32, which is the number of bgn's Table 2.

    Raises:
        ValueError: ``channel_groups`` does not divide the channels.
    """

    @checked(batch_groups=integer(1) | one_of('sample'), channel_groups=NUM_GROUPS)
    def __init__(
        self, num_features: int, *args, batch_groups: int | str = 1, channel_groups: int | str = 'auto', **kwargs
    ) -> None:
        if batch_groups == 'sample':
            kwargs['track_running_stats'] = False
        name = type(self).__name__
        self.batch_groups: Any = batch_groups
        self.channel_groups = cut_channels(name, num_features, channel_groups, most=32, argument='channel_groups')
        super().__init__(num_features, *args, **kwargs)

    @property
    def statistics_shape(self):
        return (self.channel_groups,)

    @property
    def is_bn_in_evaluation(self):
        return self.batch_groups != 'sample'

    @property
    def used_statistics(self):
        return slice(0 if self.batch_groups == 'sample' else None)

    def marks(self):
        return dict(groups_of_a_sample=self.channel_groups if self.batch_groups == 'sample' else 0)

    def statistics(self, mean, var, count):
        samples = mean.shape[0]
        shape = samples, self.channel_groups, self.num_features // self.channel_groups
        mean, var = mean.reshape(shape), var.reshape(shape)
        if self.batch_groups == 'sample':
            mean, var = (plane[..., 0] for plane in pool(mean, var, 2))
        elif samples:
            runs = min(self.batch_groups, samples)
            mean, var = (
                plane[..., 0]
                for plane in self.run_statistics(mean.tensor_split(runs), var.tensor_split(runs), count, (0, 2))
            )
        else:
            mean, var = self.batch_statistics(mean, var, count, (0, 2))
        return self._per_channel(mean), self._per_channel(var), *self.gamma_beta

    def blend(self, x):
        if self.batch_groups != 1 or not self.by_batch:
            return None
        return self.blended(x, [BN], groups=self.channel_groups)

    def running_statistics(self):
        return self._per_channel(self.running_mean), self._per_channel(self.running_var)

    def from_bn(self, tensors):
        return pooled_over_groups(self, tensors) if self.running_mean is not None else tensors

    def _one_value_each(self, x):
        if self.batch_groups == 'sample':
            return False
        return 0 < x.numel() == self.channel_groups * min(self.batch_groups, len(x))

    def _per_channel(self, plane):
        return plane.repeat_interleave(self.num_features // self.channel_groups, -1)

    def extra_repr(self):
        return f'{super().extra_repr()}, batch_groups={self.batch_groups}, channel_groups={self.channel_groups}'
