"""An affine per channel that nothing learns: a frozen BN, whose gradient needs no more than its variance and weight."""

import torch
from torch import Tensor
from torch.nn import functional as F


def constant_affine(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """``weight * (x - mean) / sqrt(var + eps) + bias`` of constants; the backward pass keeps these, not x.

    Args:
        x (Tensor): Floating point, (N, C, *S).
        mean, var, weight, bias (Tensor or None): (C,) each, without a gradient.
        eps (float): Added to the variance.

    Returns:
        Tensor: With the shape, type and memory format of x.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _ConstantAffine.apply(x, mean, var, weight, bias, eps)
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)


class _ConstantAffine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, var, weight, bias, eps):
        ctx.eps = eps
        ctx.save_for_backward(var.clone(), weight)  # running statistics may have moved on by then
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx, grad):
        var, weight = ctx.saved_tensors
        # a function of the gradient of the same kind, so that its derivatives are right too
        dx = constant_affine(grad, torch.zeros_like(var), var, weight, None, ctx.eps)
        return dx, None, None, None, None, None
