"""The layer of IBN-Net-a (baseline of paper xbn)."""
from math import prod

import torch

from .base import PlaneNorm


class IBN(PlaneNorm):
    """Half Instance, half Batch Normalization: the first C // 2 channels IN with affine, the others BN.

    IBN-Net-a has it after the first convolution of each bottleneck of the first three stages. Keys and shapes are BN's;
    the running statistics of the first half are kept, but not used.

    Args:
        num_features (int): Number of channels C.
        eps (float): Added to the variance. Default 1e-5.
        momentum (float or None): As in BN. Default 0.1.
        frozen (bool): See :class:`~mmnorm.norms.base.PlaneNorm`.

    Raises:
        ValueError: The input has no spatial axes, or one position: IN needs more.
    """

    norm_eval_note = 'IN, gamma and beta train; BN\'s half uses running statistics that stay as they were loaded.'

    @property
    def used_statistics(self):
        return slice(self.num_features // 2, None)

    def statistics(self, mean, var, count):
        half = self.num_features // 2
        mixed = [torch.cat([own[:, :half], batch[half:].expand(own.shape[0], -1)], 1)
                 for own, batch in zip((mean, var), self.batch_statistics(mean, var, count))]
        return *mixed, self.weight, self.bias

    def _check_input(self, x):
        super()._check_input(x)
        if prod(x.shape[2:]) == 1:
            raise ValueError(f'IBN normalises half of the channels over the positions of a sample, got an input of '
                             f'shape {tuple(x.shape)}, which has one; use BN in that place')
