"""Frozen Batch Normalization: the BN-dagger rows of every table (papers xbn and sn)."""
from .base import PlaneNorm


class FrozenBN(PlaneNorm):
    """BN with running statistics and affine fixed: a constant affine per channel, through which gradients flow.

    All four tensors are buffers with BN's names, so a BN checkpoint loads key by key.

    Args:
        num_features (int): Number of channels C.
        eps (float): Added to the running variance. Default 1e-5.
        momentum, frozen: Without effect; they may stand in a config whose type is changed.
    """

    def __init__(self, num_features, eps=1e-5, momentum=0.1, frozen=True):
        super().__init__(num_features, eps, momentum, frozen=True)

    def forward(self, x):
        self._check_input(x)
        return self.running_affine(x)
