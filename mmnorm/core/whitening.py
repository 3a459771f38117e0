"""Whitening of the rows of each sample's matrix, the covariance playing the part that the moments play in a plane."""

from collections.abc import Callable

import torch
from torch import Tensor

from . import elements
from .backends import spelled_out
from .elements import statistics_dtype
from .plane import apart, gradients, replayed, without_autocast


def whiten(x: Tensor, root: Callable, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Center the rows of each sample and multiply them by a matrix that is computed from their covariance.

    Args:
        x (Tensor): Floating point, (N, G, M): G rows of M values.
        root (callable): From the biased covariance, (N, G, G) in float32 at least, to the matrix, of the same shape;
            plain differentiable torch of nothing else that needs a gradient.
        weight, bias (Tensor): (C,) each, one for each of the C equal runs that the G * M values of a sample make.

    Returns:
        Tensor: ``weight * (root(covariance) @ (x - mean)) + bias``, with the shape and type of x. For the backward pass
        x is kept, and what ``root`` keeps.
    """
    with without_autocast(x):
        if spelled_out() or not torch.is_grad_enabled():
            return _spell_out(x, root, weight, bias)
        return _Whiten.apply(x, root, weight, bias)


class _Whiten(torch.autograd.Function):
    """With z = W c, of the centered x, c, and the gradient h = weight g of z: dL/dW = h c^T; autograd through ``root``
    makes dL/dSigma, S, of it, and dL/dc = W^T h + (S + S^T) c / M.
    """

    @staticmethod
    def forward(ctx, x, root, weight, bias):
        centered = _centered(x)
        with torch.enable_grad():
            ctx.covariance = _covariance(centered).requires_grad_()
            ctx.root = root(ctx.covariance)
        ctx.save_for_backward(x, weight, bias)
        return _affine(ctx.root.detach() @ centered, weight, bias).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias = ctx.saved_tensors
        with without_autocast(x):
            if torch.is_grad_enabled():  # create_graph: the graph is that of the plain formula
                x, weight, bias = apart((x, weight, bias))
                y = _spell_out(x, lambda value: replayed([ctx.root], [ctx.covariance], [value])[0], weight, bias)
                dx, dweight, dbias = gradients(y, (x, weight, bias), grad, create_graph=True)
                return dx, None, dweight, dbias
            centered, root = _centered(x), ctx.root.detach()
            grad, dweight, dbias = grad.to(centered.dtype), None, None
            if ctx.needs_input_grad[2]:
                runs, of_grad = _runs(root @ centered, weight), _runs(grad, weight)
                total, products = elements.reduce(of_grad, runs, runs.new_zeros(runs.shape[:2]))
                dweight = products.sum(0).to(weight.dtype)
            if ctx.needs_input_grad[3]:
                dbias = (total if ctx.needs_input_grad[2] else _runs(grad, bias).sum(2)).sum(0).to(bias.dtype)
            if not ctx.needs_input_grad[0]:
                return None, None, dweight, dbias
            grad = _affine(grad, weight, None)
            (dcovariance,) = torch.autograd.grad(ctx.root, ctx.covariance, grad @ centered.mT, retain_graph=True)
            matrix = (dcovariance + dcovariance.mT) / max(x.shape[2], 1)
            dx = (root.mT @ grad).baddbmm_(matrix, centered)
            return dx.sub_(dx.mean(2, keepdim=True)).to(x.dtype), None, dweight, dbias


def _spell_out(x, root, weight, bias):
    centered = _centered(x)
    return _affine(root(_covariance(centered)) @ centered, weight, bias).to(x.dtype)


def _centered(x):
    x = x.to(statistics_dtype(x))
    return x - x.mean(2, keepdim=True)


def _covariance(centered):
    return centered @ centered.transpose(1, 2) / max(centered.shape[2], 1)


def _affine(z, weight, bias):
    for parameter, apply in ((weight, torch.mul), (bias, torch.add)):
        if parameter is not None:
            z = apply(_runs(z, parameter), parameter[:, None]).reshape(z.shape)
    return z


def _runs(z, parameter):
    """View z, (N, G, M), as (N, C, *), a run for each value of a parameter."""
    return z.reshape(z.shape[0], len(parameter), z.shape[1] * z.shape[2] // len(parameter))
