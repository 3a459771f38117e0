"""The inverse square root of covariances, by Newton's iterations or by eigendecomposition."""

from functools import partial

import torch
from torch import Tensor

from mmnorm.core import recomputed


def inverse_root(covariance: Tensor, eps: float, iterations: int | None) -> Tensor:
    """The inverse square root of ``Sigma + eps I``.

    Newton's iterations, with Sigma_N = Sigma / tr(Sigma), are ``P = 1.5 P - 0.5 P^3 Sigma_N`` from the identity, and
    the root is ``P / sqrt(tr(Sigma))``.

    Args:
        covariance (Tensor): Symmetric and not negative, (B, R, R).
        eps (float): Added to the diagonal; may be 0.
        iterations (int or None): Of Newton's; None for an eigendecomposition, which is exact and not exportable to
            ONNX.

    Returns:
        Tensor: (B, R, R); 0 for a covariance that is not finite, and for one of 0 where eps is 0.
    """
    identity = identity_like(covariance)
    # What overflows is multiplied by 0, as by BN, and so is what is constant where eps is 0; 0 times NaN is NaN, and
    # the other matrices are as they would be alone
    has_root = covariance.isfinite().all(2).all(1)[:, None, None]
    if not eps:
        has_root = has_root & (covariance.abs().sum((1, 2), keepdim=True) > 0)
    covariance = torch.where(has_root, covariance + eps * identity, identity)
    if iterations is None:
        root = _InverseSquareRoot.apply(covariance, eps)
    else:
        root = recomputed(partial(_newton, iterations=iterations), covariance)
    return torch.where(has_root, root, 0)


def identity_like(covariance: Tensor) -> Tensor:
    """Of the shape and kind (DTensor) of the covariance, (B, R, R); by what every ONNX opset has."""
    number = torch.ones_like(covariance[:, 0]).cumsum(1)
    return (number[:, :, None] == number[:, None]).to(covariance.dtype)


def _newton(covariance, iterations):
    identity = identity_like(covariance)
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
