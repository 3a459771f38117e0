"""Positional Normalization (baseline of paper bgn)."""
from torch import nn
from torch.nn import functional as F

from mmnorm.core import like

from .base import check_input, freeze


class PN(nn.GroupNorm):
    """Positional Normalization: mean and deviation over the channels at each position; affine per channel.

    Without the path that re-injects the moments into later layers. It keeps no running statistics; training and
    evaluation are the same.

    Args:
        num_features (int): Number of channels C.
        eps (float): Added to the variance. Default 1e-5.
        frozen (bool): Gamma and beta never change; they are buffers then.

    Shape:
        Input and output (N, C, *S); N may be 0.
    """

    def __init__(self, num_features, eps=1e-5, frozen=False):
        super().__init__(1, num_features, eps)
        if frozen:
            freeze(self)

    def forward(self, x):
        check_input(self, x, self.num_channels)
        last = x.dim() - 1
        y = F.layer_norm(x.movedim(1, last), (self.num_channels, ), self.weight, self.bias, self.eps)
        return like(y.movedim(last, 1).to(x.dtype), x)

    def extra_repr(self):
        return f'{self.num_channels}, eps={self.eps}'
