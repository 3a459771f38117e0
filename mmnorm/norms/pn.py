"""Positional Normalization: Li et al., NeurIPS 2019, https://arxiv.org/abs/1907.04312 (baseline of paper bgn)."""

from functools import partial

from torch.nn import functional as F

from mmnorm.core import recomputed

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
        normalized = partial(_normalized, channels=self.num_channels, eps=self.eps)
        if x.dtype.itemsize >= 4:
            return normalized(x, self.weight, self.bias)
        # in half precision ATen would sum the gradients of gamma and beta in that; a copy in float32 is not kept
        return recomputed(lambda x, *affine: normalized(x.float(), *affine).to(x.dtype), x, self.weight, self.bias)

    def extra_repr(self):
        return f'{self.num_channels}, eps={self.eps}'


def _normalized(x, weight, bias, channels, eps):
    last = x.dim() - 1
    weight, bias = (p if p is None else p.to(x.dtype) for p in (weight, bias))
    return F.layer_norm(x.movedim(1, last), (channels,), weight, bias, eps).movedim(last, 1)
