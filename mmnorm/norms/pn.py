"""Positional Normalization: Li et al., NeurIPS 2019, https://arxiv.org/abs/1907.04312 (baseline of paper bgn)."""

from mmnorm.core import normalize_positions

from .batch_free import BatchFreeNorm


class PN(BatchFreeNorm):
    """Positional Normalization: mean and deviation over the channels at each position; affine per channel.

    Without the path that re-injects the moments into later layers. For arguments see
    :class:`~mmnorm.norms.batch_free.BatchFreeNorm`.
    """

    sees_padding = False

    def marks(self):
        return dict(positional=1)

    def normalize(self, x):
        return normalize_positions(x, self.num_channels, self.weight, self.bias, self.eps)

    def extra_repr(self):
        return f'{self.num_channels}, eps={self.eps}'
