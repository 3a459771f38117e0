"""Convolutions whose weights are computed, as conv_cfg: those that norms, or papers' comparisons, go with."""

from torch import Tensor, nn


class ConvMABN(nn.Conv2d):
    """A convolution whose weight has a mean of 0 in each filter: of MABN (Yan et al., ICLR 2020, arXiv 2001.06838).

    ``y = conv(x, weight - mean over (C_in, kH, kW) of weight) + bias``. The state dict is that of ``nn.Conv2d``.

    Args:
        As of ``nn.Conv2d``.

    Shape:
        As of ``nn.Conv2d``.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)
