"""The layer that normalizers without running statistics are."""

from torch import Tensor, nn

from mmnorm.core import like

from .base import freeze
from .checks import check_input


class BatchFreeNorm(nn.GroupNorm):
    """Base of the normalizers that keep no running statistics: training and evaluation are the same.

    A subclass defines ``normalize(x)``. It is an ``nn.GroupNorm``, so that norm_decay_mult finds it.

    Args:
        num_features (int): Number of channels C.
        eps (float): Added to the variance. Default 1e-5.
        momentum, track_running_stats: Without effect; they may stand in a config whose type is changed.
        affine (bool): Whether gamma and beta exist. Default True.
        device, dtype: Of the parameters.
        num_groups (int): Of the channels. Default 1.
        frozen (bool): Gamma and beta never change; they are buffers then.

    Shape:
        Input and output (N, C, *S); N may be 0.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum=None,
        affine: bool = True,
        track_running_stats=None,
        device=None,
        dtype=None,
        *,
        num_groups: int = 1,
        frozen: bool = False,
    ) -> None:
        super().__init__(num_groups, num_features, eps, affine, device, dtype)
        if frozen:
            freeze(self)

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize x, which is checked; a contiguous tensor of as many elements."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.num_channels)
        return like(self.normalize(x).to(x.dtype), x)
