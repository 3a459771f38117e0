"""Group Whitening: Huang et al., CVPR 2021, https://arxiv.org/abs/2009.13333 (the strongest BFN of xbn, Table A2)."""

from functools import partial
from math import prod

import torch

from mmnorm.core import recomputed, whiten

from .arguments import NONE, checked, integer, one_of
from .batch_free import BatchFreeNorm
from .groups import NUM_GROUPS, cut_channels
from .marks import reset_marks
from .passes import beside_saving_hooks


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
        root = beside_saving_hooks(self._root)
        return whiten(x.reshape(x.shape[0], self.num_groups, values), root, self.weight, self.bias)

    def _root(self, covariance):
        """The inverse square root of the covariance of the groups, (N, G, G)."""
        identity = _identity(covariance)
        # A sample that overflows is multiplied by 0, as by BN, and so is a constant one where eps is 0; 0 times NaN is
        # NaN, and the other samples are as they would be alone
        has_root = covariance.isfinite().all(2).all(1)[:, None, None]
        if not self.eps:
            has_root = has_root & (covariance.abs().sum((1, 2), keepdim=True) > 0)
        covariance = torch.where(has_root, covariance + self.eps * identity, identity)
        if self.method == 'zca':
            root = _InverseSquareRoot.apply(covariance, self.eps)
        else:
            root = recomputed(partial(_newton, iterations=self.iterations), covariance)
        return torch.where(has_root, root, 0)

    def extra_repr(self):
        return f'{self.num_channels}, num_groups={self.num_groups}, eps={self.eps}, method={self.method}'


def _identity(covariance):
    """Of the shape and kind (DTensor) of the covariance, (N, G, G); by what every ONNX opset has."""
    number = torch.ones_like(covariance[:, 0]).cumsum(1)
    return (number[:, :, None] == number[:, None]).to(covariance.dtype)


def _newton(covariance, iterations):
    identity = _identity(covariance)
    trace = (covariance * identity).sum((1, 2), keepdim=True)  # ONNX has no diagonal before opset 13
    normalized = covariance / trace
    root = 1.5 * identity - 0.5 * normalized
    for _ in range(iterations - 1):
        root = torch.baddbmm(root, root @ root @ root, normalized, beta=1.5, alpha=-0.5)
    return root * torch.rsqrt(trace)


class _InverseSquareRoot(torch.autograd.Function):
    """Of symmetric positive matrices (N, G, G). Its gradient is finite where eigenvalues coincide; eigh's is not.

    With the square root S and its inverse R, the gradient A of a matrix solves ``S A + A S = -R dR R``.
    """

    @staticmethod
    def forward(ctx, matrices, eps):
        values, vectors = torch.linalg.eigh(matrices)
        # none is smaller than eps, but for rounding, which is relative to the largest
        roots = torch.maximum(values, (values[:, -1:] * torch.finfo(values.dtype).eps).clamp(min=eps)).sqrt()
        inverse = vectors / roots[:, None] @ vectors.mT
        ctx.save_for_backward(matrices, inverse, roots, vectors)
        return inverse

    @staticmethod
    def backward(ctx, grad):
        matrices, inverse, roots, vectors = ctx.saved_tensors
        return _Lyapunov.apply(matrices @ inverse, inverse @ (grad + grad.mT) @ inverse / -2, roots, vectors), None


class _Lyapunov(torch.autograd.Function):
    """The solution A of ``S A + A S = Q``, (N, G, G) each, for a symmetric S of known eigenvalues and eigenvectors."""

    @staticmethod
    def forward(ctx, matrices, right, values, vectors):
        inner = vectors.mT @ right @ vectors / (values[:, :, None] + values[:, None])
        solution = vectors @ inner @ vectors.mT
        ctx.save_for_backward(matrices, solution, values, vectors)
        return solution

    @staticmethod
    def backward(ctx, grad):
        matrices, solution, values, vectors = ctx.saved_tensors
        dright = _Lyapunov.apply(matrices, grad, values, vectors)
        return -(dright @ solution.mT + solution.mT @ dright), dright, None, None
