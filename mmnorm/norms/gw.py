"""Group Whitening: Huang et al., CVPR 2021, https://arxiv.org/abs/2009.13333 (the strongest BFN of xbn, Table A2)."""

from math import prod

import torch

from mmnorm.core import first_derivative_only

from .arguments import NONE, checked, integer, one_of
from .batch_free import BatchFreeNorm
from .groups import NUM_GROUPS, cut_channels
from .marks import reset_marks


class GW(BatchFreeNorm):
    """Group Whitening: decorrelates the groups of channels of each sample, with G x G whitening matrices.

    A sample is seen as (G, M) with M = (C / G) * L, centered, and multiplied by the inverse square root of its
    covariance Sigma; then affine per channel. Newton's iterations, with Sigma_N = Sigma / tr(Sigma), are
    ``P = 1.5 P - 0.5 P^3 Sigma_N`` from the identity, and the root is ``P / sqrt(tr(Sigma))``.

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
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(x.shape[0], self.num_groups, values)
            centered = wide - wide.mean(2, keepdim=True)
            identity = torch.eye(self.num_groups, dtype=centered.dtype, device=x.device)
            covariance = centered @ centered.transpose(1, 2) / max(values, 1)
            covariance = self._regular(covariance, identity)
            y = (self._whitening(covariance, identity) @ centered).reshape(*x.shape[:2], positions)
            for parameter, apply in ((self.weight, torch.mul), (self.bias, torch.add)):
                y = y if parameter is None else apply(y, parameter[:, None])
            return y

    def _regular(self, covariance, identity):
        """The covariance with eps on its diagonal; with eps=0 that of a constant sample is the identity instead."""
        if self.eps:
            return covariance + self.eps * identity
        return torch.where(covariance.abs().sum((1, 2), keepdim=True) > 0, covariance, identity)

    def _whitening(self, covariance, identity):
        if self.method == 'zca':
            return _InverseSquareRoot.apply(covariance, self.eps)
        trace = covariance.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        root = identity
        for _ in range(self.iterations):
            root = 1.5 * root - 0.5 * root @ root @ root @ (covariance / trace)
        return root * torch.rsqrt(trace)

    def extra_repr(self):
        return f'{self.num_channels}, num_groups={self.num_groups}, eps={self.eps}, method={self.method}'


class _InverseSquareRoot(torch.autograd.Function):
    """Of symmetric positive matrices (N, G, G). Its gradient is finite where eigenvalues coincide; eigh's is not."""

    @staticmethod
    def forward(ctx, matrices, eps):
        values, vectors = torch.linalg.eigh(matrices)
        # none is smaller than eps, but for rounding, which is relative to the largest
        roots = torch.maximum(values, (values[:, -1:] * torch.finfo(values.dtype).eps).clamp(min=eps)).sqrt()
        ctx.save_for_backward(roots, vectors)
        return vectors / roots[:, None] @ vectors.mT

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad):
        roots, vectors = ctx.saved_tensors
        # divided differences of l -> 1 / sqrt(l)
        a, b = roots[:, :, None], roots[:, None]
        inner = vectors.mT @ (grad + grad.mT) @ vectors / (-2 * a * b * (a + b))
        return vectors @ inner @ vectors.mT, None
