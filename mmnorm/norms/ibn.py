"""The layer of IBN-Net-a: Pan et al., ECCV 2018, https://arxiv.org/abs/1807.09441 (baseline of paper xbn)."""

from math import prod

import torch

from mmnorm.core import BN

from .base import PlaneNorm
from .checks import called


class IBN(PlaneNorm):
    """Half Instance, half Batch Normalization: the first C // 2 channels IN with affine, the others BN.

    IBN-Net-a has it after the first convolution of each bottleneck of the first three stages. Names and shapes are
    BN's, but for a mark (:mod:`mmnorm.norms.marks`); the running statistics of the first half are kept, but not used.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.base.PlaneNorm`.

    Raises:
        ValueError: The input has no spatial axes, or one position: IN needs more.
    """

    norm_eval_note = "IN, gamma and beta train; BN's half uses running statistics that stay as they were loaded."

    @property
    def used_statistics(self):
        return slice(self.num_features // 2, None)

    def marks(self):
        return dict(instance_channels=self.num_features // 2)

    def statistics(self, mean, var, count):
        half = self.num_features // 2
        mixed = [
            torch.cat([own[:, :half], batch[half:].expand(own.shape[0], -1)], 1)
            for own, batch in zip((mean, var), self.batch_statistics(mean, var, count))
        ]
        return *mixed, *self.gamma_beta

    def blend(self, x):
        return self.blended(x, [BN], instances=self.num_features // 2)

    def check(self, x):
        super().check(x)
        if prod(x.shape[2:]) == 1:
            raise ValueError(
                f'{called(self)} normalizes half of the channels over the positions of a sample, got an input '
                f'of shape {tuple(x.shape)}, which has only one; use BN there'
            )
