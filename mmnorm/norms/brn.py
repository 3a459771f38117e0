"""Batch Renormalization: Ioffe, NeurIPS 2017, https://arxiv.org/abs/1702.03275 (baseline of evalnorm and sn)."""

import torch

from mmnorm.core import BN, Renorm

from .arguments import checked, integer, number
from .base import PlaneNorm
from .passes import as_in_first_pass, may_be_repeated


class BRN(PlaneNorm):
    """Batch Renormalization: BN whose batch statistics are corrected towards the running ones, within limits.

    ``y = weight * ((x - mu_B) / sigma_B * r + d) + bias`` with ``r = clip(sigma_B / sigma, 1 / r_max, r_max)`` and
    ``d = clip((mu_B - mu) / sigma, -d_max, d_max)``, where mu and sigma = sqrt(var + eps) are the running statistics
    before this batch; no gradient passes r and d. In evaluation it is BN.

    Activation checkpointing, which computes a batch again when the running statistics have moved on, gets the r and d
    of the first pass; torch.compile leaves the layer's training as it is.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.base.PlaneNorm`. Without running statistics it is BN.
        r_max, d_max (float): Limits. Default 2.0 and 1.0 (evalnorm); sn used 1.5 and 0.5.
        warmup (int): Steps, counted by ``num_batches_tracked``, over which the limits grow linearly from 1 and 0 (BN)
            to r_max and d_max. Default 5000; none without that count.

    Raises:
        ValueError: ``r_max`` is below 1, or ``d_max`` or ``warmup`` below 0.
    """

    is_bn_in_evaluation = True

    @checked(r_max=number(1), d_max=number(0), warmup=integer(0))
    def __init__(
        self, num_features: int, *args, r_max: float = 2.0, d_max: float = 1.0, warmup: int = 5000, **kwargs
    ) -> None:
        super().__init__(num_features, *args, **kwargs)
        self.r_max, self.d_max, self.warmup = r_max, d_max, warmup

    def statistics(self, mean, var, count):
        gamma, beta = self.gamma_beta
        if self.running_mean is None:
            return *self.batch_statistics(mean, var, count), gamma, beta
        renorm = self._renorm(copy=True)  # of the running statistics before this batch
        mean, var = self.batch_statistics(mean, var, count)
        r, d = as_in_first_pass(self, mean, var, renorm(mean.detach(), var.detach(), self.eps))
        return mean, var, gamma * r, beta + gamma * d

    def blend(self, x):
        if self.running_mean is None:
            return self.blended(x, [BN])
        return None if may_be_repeated() else self.blended(x, [BN], renorm=self._renorm())

    def _renorm(self, copy=False):
        buffers = self.running_mean, self.running_var, self.num_batches_tracked
        mean, var, batches = (b.clone() if copy and b is not None else b for b in buffers)
        return Renorm(mean, var, batches, self.warmup, self.averaged_from, self.r_max, self.d_max)

    def reset_running_stats(self):
        """As torch's, for tools that recollect statistics, but ``num_batches_tracked`` and with it the limits stay."""
        batches = self.num_batches_tracked
        if batches is None or self.frozen:
            return super().reset_running_stats()
        self.averaged_from = int(batches)
        super().reset_running_stats()
        batches.fill_(self.averaged_from)

    def reset_parameters(self):
        super().reset_parameters()
        self.averaged_from = 0

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self.averaged_from = 0

    def normalize(self, x):
        return self._train(x) if self.by_batch else super().normalize(x)

    # AOTAutograd recomputes r and d in the backward pass from running statistics that are updated by then
    @torch.compiler.disable
    def _train(self, x):
        return super().normalize(x)

    def extra_repr(self):
        return f'{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}, warmup={self.warmup}'
