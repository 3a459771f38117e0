"""Group Whitening: Huang et al., CVPR 2021, https://arxiv.org/abs/2009.13333 (the strongest BFN of xbn, Table A2)."""

from math import prod

from mmnorm.core import whiten

from .arguments import NONE, checked, integer, one_of
from .batch_free import BatchFreeNorm
from .groups import NUM_GROUPS, cut_channels
from .marks import reset_marks
from .passes import beside_saving_hooks
from .roots import inverse_root


class GW(BatchFreeNorm):
    """Group Whitening: decorrelates the groups of channels of each sample, with G x G whitening matrices.

    A sample is seen as (G, M) with M = (C / G) * L, centered, and multiplied by the inverse square root of its
    covariance (:func:`~mmnorm.norms.roots.inverse_root`); then affine per channel.

    Args:
        num_features, eps, affine, device, dtype, frozen: See
            :class:`~mmnorm.norms.batch_free.BatchFreeNorm`; eps is added to the diagonal of the covariance, and may be
            0, as in the authors' code: a constant sample gives beta all the same.
        num_groups (int or str): G, at most C. Default 'auto': the largest divisor of C up to 64, which is xbn's number.
        channels_per_group (int): C / G, instead of ``num_groups``.
        method (str): 'iterative' (Newton's iterations) or 'zca' (eigendecomposition, exact; not exportable to ONNX).
        iterations (int): T of 'iterative'. Default 5.

    Shape:
        Input and output (N, C, *S) with M of at least 2; N may be 0.

    Raises:
        ValueError: The groups do not divide the channels, unknown method, or M is 1 (in forward).
    """

    takes_eps_0 = True

    @checked(
        num_groups=NUM_GROUPS,
        channels_per_group=integer(1) | NONE,
        method=one_of('iterative', 'zca'),
        iterations=integer(1),
    )
    def __init__(
        self,
        num_features: int,
        *args,
        num_groups: int | str = 'auto',
        channels_per_group: int | None = None,
        method: str = 'iterative',
        iterations: int = 5,
        **kwargs,
    ) -> None:
        self.method, self.iterations = method, iterations
        super().__init__(num_features, *args, **kwargs)
        self.num_groups = cut_channels(type(self).__name__, num_features, num_groups, channels_per_group)
        reset_marks(self)  # by the number of groups

    def marks(self):
        return dict(whitened_groups=self.num_groups, newton_iterations=self.iterations * (self.method == 'iterative'))

    def normalize(self, x):
        positions = prod(x.shape[2:])
        values = self.num_channels // self.num_groups * positions
        if values == 1:
            raise ValueError(
                f'{type(self).__name__} with num_groups={self.num_groups} has one value per group in an input of shape '
                f'{tuple(x.shape)}; use at most {self.num_channels // 2} groups there'
            )
        rows = x.shape[0], self.num_groups, values
        flat = x.reshape(*x.shape[:2], positions)
        return whiten(flat, rows, beside_saving_hooks(self._statistics), self.weight, self.bias)

    def _statistics(self, mean, covariance):
        return mean, inverse_root(covariance, self.eps, self.iterations if self.method == 'iterative' else None)

    def extra_repr(self):
        return f'{self.num_channels}, num_groups={self.num_groups}, eps={self.eps}, method={self.method}'
