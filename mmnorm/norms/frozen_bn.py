"""Frozen Batch Normalization: the BN-dagger rows of every table (papers xbn and sn)."""

from .base import PlaneNorm


class FrozenBN(PlaneNorm):
    """BN with running statistics and affine fixed: a constant affine per channel, through which gradients flow.

    All four tensors are buffers with BN's names, so a BN checkpoint loads key by key.

    Args:
        num_features, eps, affine, device, dtype, bias: See :class:`~mmnorm.norms.base.PlaneNorm`.
        momentum, frozen: Without effect; they may stand in a config whose type is changed.

    Raises:
        ValueError: ``track_running_stats=False``: there would be nothing to normalize by.
    """

    is_bn_in_evaluation = True

    def __init__(self, num_features: int, *args, frozen: bool = True, **kwargs) -> None:
        super().__init__(num_features, *args, frozen=True, **kwargs)
        if not self.track_running_stats:
            raise ValueError(
                'FrozenBN normalizes by running statistics, and track_running_stats=False leaves none: leave it out'
            )
