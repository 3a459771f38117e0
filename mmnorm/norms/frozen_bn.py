"""Frozen Batch Normalization: the BN-dagger rows of every table (papers xbn and sn)."""

from .arguments import FLAG, checked, note_no_effect
from .base import PlaneNorm
from .checks import called


class FrozenBN(PlaneNorm):
    """BN with running statistics and affine fixed: a constant affine per channel, through which gradients flow.

    All four tensors are buffers with BN's names, so a BN checkpoint loads key by key.

    Args:
        num_features, eps, affine, device, dtype, bias: See :class:`~mmnorm.norms.base.PlaneNorm`; eps may be 0, as in
            some of mmdet's configs.
        momentum: Without effect; it may stand in a config whose type is changed.
        frozen (bool): True.

    Raises:
        ValueError: ``track_running_stats=False``, so that there would be nothing to normalize by; or ``frozen=False``.
    """

    is_bn_in_evaluation = True
    takes_eps_0 = True

    @checked(frozen=FLAG)
    def __init__(self, num_features: int, *args, frozen: bool = True, **kwargs) -> None:
        super().__init__(num_features, *args, frozen=True, **kwargs)
        name = f'{type(self).__name__}({num_features})'
        if not frozen:
            raise ValueError(f'{name}: frozen=False is BN; use that')
        if not self.track_running_stats:
            raise ValueError(
                f'{name} normalizes by running statistics, and track_running_stats=False leaves none: leave it out'
            )
        if 'momentum' in kwargs:
            note_no_effect(type(self), 'momentum', 'the running statistics never change')

    def check(self, x):
        super().check(x)
        if self.running_mean is None:
            raise ValueError(f'{called(self)} normalizes by running statistics, and running_mean is None')
