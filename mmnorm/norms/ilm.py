"""Instance-Level Meta Normalization: Jia et al., CVPR 2019, https://arxiv.org/abs/1904.03516 (of rbn, Table 1)."""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmnorm.core import normalize, pool

from .arguments import NONE, checked, integer, one_of
from .batch_free import BatchFreeNorm
from .checks import called
from .groups import NUM_GROUPS, cut_channels
from .marks import reset_marks
from .passes import beside_saving_hooks

BASES = ('GN', 'IN', 'LN')


class ILM(BatchFreeNorm):
    """Instance-Level Meta Normalization: GN, IN or LN, whose gamma and beta are predicted for each sample.

    The channels are cut into K key groups, of whose variances and means over the positions, v and m, (N, K) each, are
    made ``gamma = weight + sigmoid(weight_decoder @ relu(embedding @ v))`` and
    ``beta = bias + tanh(bias_decoder @ relu(embedding @ m))``, the same for each channel of a key group, with one
    embedding (E, K) for both and decoders (K, E). E is K / 16, and 2 where K is below 16. These three start at random
    as those of ``nn.Linear`` do.

    So a weight of 0, as zero_init_residual of hosts has it, leaves a branch of half its size; the authors' ResNets have
    no such start.

    The authors' code takes unbiased variances, of the key groups and for the normalization; here they are biased, as
    those of GN are.

    Args:
        num_features, eps, affine, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.batch_free.BatchFreeNorm`; affine is about weight and bias alone.
        base (str): What normalizes: 'GN' (default), 'IN' or 'LN'.
        num_groups (int or str): Of GN, at most C. Default 'auto': the largest divisor of C up to 32, the authors'
            number.
        channels_per_group (int): Of GN, instead of ``num_groups``.
        key_channels (int or str): Channels of a key group, C / K. Default 'auto': the largest divisor of C up to 16,
            the authors' number.

    Shape:
        Input and output (N, C, *S) with more than one value for each mean and variance of the base; N may be 0.

    Raises:
        ValueError: The groups do not divide the channels, or one has one value (in forward).
    """

    control_parameters = dict(embedding=0.0, weight_decoder=0.0, bias_decoder=0.0)
    why_not_zero = 'gamma is weight and a sigmoid beside it, about 0.5 at the start'
    embedding: Tensor
    weight_decoder: Tensor
    bias_decoder: Tensor

    @checked(
        base=one_of(*BASES),
        num_groups=NUM_GROUPS,
        channels_per_group=integer(1) | NONE,
        key_channels=NUM_GROUPS,
    )
    def __init__(
        self,
        num_features: int,
        *args,
        base: str = 'GN',
        num_groups: int | str = 'auto',
        channels_per_group: int | None = None,
        key_channels: int | str = 'auto',
        **kwargs,
    ) -> None:
        name = type(self).__name__
        of_gn = cut_channels(name, num_features, num_groups, channels_per_group, most=32)
        self.base = base
        self.key_groups = num_features // cut_channels(name, num_features, key_channels, None, 16, 'key_channels')
        super().__init__(num_features, *args, **kwargs)
        self.num_groups = dict(GN=of_gn, IN=num_features, LN=1)[base]
        reset_marks(self)  # by the number of groups

    def marks(self):
        return dict(meta_groups=self.num_groups)

    def control_shape(self, name):
        embedded = self.key_groups // 16 or 2
        return (embedded, self.key_groups) if name == 'embedding' else (self.key_groups, embedded)

    @torch.no_grad()
    def reset_controls(self):
        for name in self.control_parameters:
            value = getattr(self, name, None)
            if value is not None:  # torch's constructor comes here before there are any
                nn.init.uniform_(value, -(value.shape[1] ** -0.5), value.shape[1] ** -0.5)

    def put_controls(self, device=None, dtype=None):
        super().put_controls(device, dtype)
        self.reset_controls()

    def normalize(self, x):
        if self.num_channels // self.num_groups * prod(x.shape[2:]) == 1:
            raise ValueError(
                f'{called(self)} with {self.num_groups} groups has one value per group in an input of shape '
                f'{tuple(x.shape)}, which has no variance; use fewer groups there'
            )
        return normalize(x, beside_saving_hooks(self._statistics), self.eps, self.learned())

    def _statistics(self, mean, var, count):
        key_mean, key_var = (plane[..., 0] for plane in self._pooled(mean, var, self.key_groups))
        gamma, beta = self.gamma_beta
        gamma = gamma + self._each(self._predicted(key_var, self.weight_decoder).sigmoid())
        beta = beta + self._each(self._predicted(key_mean, self.bias_decoder).tanh())
        size = self.num_channels // self.num_groups
        pooled = self._pooled(mean, var, self.num_groups)
        return *(plane.expand(-1, -1, size).reshape(mean.shape) for plane in pooled), gamma, beta

    def _pooled(self, mean, var, groups):
        """Mean and variance of each of the groups that the channels are cut into, (N, groups, 1)."""
        shape = mean.shape[0], groups, self.num_channels // groups
        return pool(mean.reshape(shape), var.reshape(shape), 2)

    def _predicted(self, keys, decoder):
        embedded = F.linear(keys, self.embedding.to(keys.dtype)).relu()
        return F.linear(embedded, decoder.to(keys.dtype))

    def _each(self, plane):
        """Of each channel, (N, C), what is of each key group."""
        return plane.repeat_interleave(self.num_channels // self.key_groups, 1)

    def extra_repr(self):
        return f'{self.num_channels}, base={self.base}, num_groups={self.num_groups}, eps={self.eps}'
