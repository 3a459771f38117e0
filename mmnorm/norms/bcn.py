"""Batch-Channel Normalization: Qiao et al., 2019 (of paper rbn, Table 1).

https://arxiv.org/abs/1911.09738 and https://arxiv.org/abs/1903.10520
"""

import torch
from torch import Tensor

from mmnorm.core import pool

from .arguments import FLAG, NONE, checked, integer
from .base import PlaneNorm
from .checks import warn_once
from .groups import NUM_GROUPS, cut_channels
from .passes import as_in_first_pass


class BCN(PlaneNorm):
    """Batch-Channel Normalization: BN, then GN with an affine for each group.

    ``y = weight * (b - mean_g(b)) / sqrt(var_g(b) + eps) + bias`` of BN's result b, whose mean and variance on the
    plane are those of x, shifted and scaled by BN: it takes one pass over x. As in the authors' code weight and bias
    are of the groups, (G,), so that a block whose last weight a host sets to 0 (zero_init_residual) starts as the
    identity. BN's are bn_weight and bn_bias, (C,), which a BN checkpoint loads into: a gamma in front of GN that has
    just left 0 gives a result of full size.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.base.PlaneNorm`. Without affine or bias the groups have none either.
        num_groups (int or str): G, at most C. Default 'auto': the largest divisor of C up to 32, the authors' number,
            and to C / 2: in a group of one channel BN's weight and bias would count for nothing.
        channels_per_group (int): C / G, instead of ``num_groups``.
        estimate (bool): The form for micro-batches, of one image or two: BN normalizes by the running statistics in
            training as well, after the batch has moved them on, by the weight ``momentum``; no gradient passes them.
            The variance is that around the running mean before the batch, without Bessel's correction, as in the
            authors' code. Default False.

    Raises:
        ValueError: The groups do not divide the channels, or ``estimate`` without running statistics.
    """

    control_parameters = dict(bn_weight=1.0, bn_bias=0.0)
    bn_parameters = dict(weight='bn_weight', bias='bn_bias')
    bn_weight: Tensor
    bn_bias: Tensor
    norm_eval_note = (
        'GN, gamma, beta and those of its groups train; BN before it uses running statistics that stay as they were '
        'loaded.'
    )

    @checked(num_groups=NUM_GROUPS, channels_per_group=integer(1) | NONE, estimate=FLAG)
    def __init__(
        self,
        num_features: int,
        *args,
        num_groups: int | str = 'auto',
        channels_per_group: int | None = None,
        estimate: bool = False,
        **kwargs,
    ) -> None:
        name = type(self).__name__
        most = min(32, max(num_features // 2, 1))
        self.num_groups = cut_channels(name, num_features, num_groups, channels_per_group, most)
        self.estimate = estimate
        super().__init__(num_features, *args, **kwargs)
        if estimate and not self.track_running_stats:
            raise ValueError(
                f'{name}({num_features}): estimate=True normalizes by running statistics, and '
                'track_running_stats=False leaves none: leave one of them out'
            )

    @property
    def affine_shape(self):
        return (self.num_groups,)

    @property
    def gamma_beta(self):
        each = self.num_features // self.num_groups
        gamma = 1.0 if self.weight is None else self.weight.repeat_interleave(each)
        return gamma, 0.0 if self.bias is None else self.bias.repeat_interleave(each)

    def control_shape(self, name):
        of_groups = self.weight if name == 'bn_weight' else self.bias
        return None if of_groups is None else (self.num_features,)

    def marks(self):
        return dict(channel_groups=self.num_groups if self.weight is None else 0)  # else the shape of weight shows it

    def statistics(self, mean, var, count):
        mu, sigma2 = (self._estimates if self._estimating else self.batch_statistics)(mean, var, count)
        of_bn, shift = getattr(self, 'bn_weight', 1.0), getattr(self, 'bn_bias', 0.0)
        scale = of_bn * torch.rsqrt(sigma2 + self.eps)
        shape = mean.shape[0], self.num_groups, self.num_features // self.num_groups
        # of BN's result
        own_mean, own_var = scale * (mean - mu) + shift, scale.square() * var
        group_mean, group_var = pool(own_mean.reshape(shape), own_var.reshape(shape), 2)
        group_mean, rstd = (
            plane.expand(shape).reshape(mean.shape) for plane in (group_mean, torch.rsqrt(group_var + self.eps))
        )
        gamma, beta = self.gamma_beta
        rstd = rstd * gamma
        return mu, sigma2, of_bn * rstd, (shift - group_mean) * rstd + beta

    # the micro-batch form

    @property
    def _estimating(self):
        """Whether a batch in training is normalized by the running statistics."""
        return self.estimate and self.training and self.running_mean is not None

    def _estimates(self, mean, var, count):
        """The running statistics after a batch; where activation checkpointing computes it again, those of then."""
        batch = self.batch_statistics(mean.detach(), var.detach(), count)
        return as_in_first_pass(self, *batch, tuple(value.clone() for value in self.held_statistics(mean.dtype)))

    def track(self, mean, var, elements, samples, *others):
        if self._estimating:
            var = var + (mean - self.running_mean).square()
        super().track(mean, var, elements, samples)

    @property
    def bessel(self):
        return not self.estimate

    def _one_value_each(self, x):
        return not self._estimating and super()._one_value_each(x)

    def normalize(self, x):
        return self._train(x) if self._estimating else super().normalize(x)

    # AOTAutograd recomputes in the backward pass what comes of running statistics, which are updated by then
    @torch.compiler.disable
    def _train(self, x):
        return super().normalize(x)

    def from_bn(self, tensors):
        if 'bn_weight' in tensors or self.weight is None:
            return tensors
        warn_once(
            f'{type(self).__name__}: a BN checkpoint is loaded, and GN follows BN here: the network computes '
            'something else than it did with BN, and has to be trained.'
        )
        started = dict(tensors)
        for leaf, start in dict(weight=1.0, bias=0.0).items():
            if leaf in tensors and getattr(self, leaf) is not None:
                started[self.bn_parameters[leaf]] = tensors[leaf]
                started[leaf] = tensors[leaf].new_full(self.affine_shape, start)
        return started

    def extra_repr(self):
        return f'{super().extra_repr()}, num_groups={self.num_groups}, estimate={self.estimate}'


class SyncBCN(BCN):
    """:class:`BCN` with BN's statistics over all ranks. For arguments see there."""

    sync = True
