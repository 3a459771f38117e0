"""Whitening of the rows of matrices, whose means and covariances play the part that the moments play in a plane."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from . import elements
from .backends import spelled_out
from .elements import statistics_dtype
from .plane import apart, gradients, replayed, without_autocast


def whiten(
    x: Tensor,
    rows: tuple[int, int, int],
    statistics: Callable,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    parameters: Iterable[Tensor | None] = (),
    takes_moments: bool = True,
) -> Tensor:
    """Center the rows of matrices, and multiply each by a matrix that is computed from means and covariances of rows.

    Args:
        x (Tensor): Floating point, (N, C, L).
        rows (tuple[int, int, int]): The shape (B, R, M) to see x in: B matrices, of R rows of M values.
        statistics (callable): ``(mean, covariance) -> (mean, root)``, plain differentiable torch. It is given the mean
            of each row, (B, R), and the biased covariance of the rows of each matrix, (B, R, R), in float32 at least,
            and returns what is subtracted and multiplied by, of the same shapes. A mean that it returns as it got it
            costs nothing.
        weight, bias (Tensor): (C,) each.
        parameters (iterable[Tensor]): All that ``statistics`` uses and that needs a gradient.
        takes_moments (bool): Whether ``statistics`` uses what it is given; if not, it gets None, which saves a pass,
            and what it returns has no gradient.

    Returns:
        Tensor: ``weight * (root @ (x - mean)) + bias``, with the shape and type of x. For the backward pass x is kept,
        and what ``statistics`` keeps.
    """
    parameters = [p for p in parameters if p is not None and p.requires_grad]
    with without_autocast(x):
        if spelled_out() or not torch.is_grad_enabled():
            return _spell_out(x, rows, statistics, weight, bias, takes_moments)
        return _Whiten.apply(x, rows, statistics, takes_moments, weight, bias, *parameters)


def row_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each row, (B, R), and biased covariance of the rows, (B, R, R), of matrices (B, R, M); 0 where M is 0."""
    centered, mean = _centered(x, x.shape)
    return mean, _covariance(centered)


class _Whiten(torch.autograd.Function):
    """With the own mean m of each row, c = x - m, z = W (x - mu) and the gradient h = weight g of z:

        dL/dW = h (x - mu)^T        dL/dmu = -W^T sum(h)
    autograd through ``statistics`` makes dL/dm and dL/dSigma, S, of them, and
        dL/dx = W^T h + (S + S^T) c / M + dL/dm / M
    """

    @staticmethod
    def forward(ctx, x, rows, statistics, takes_moments, weight, bias, *parameters):
        centered, own = _centered(x, rows) if takes_moments else (None, None)
        with torch.enable_grad():
            moments = [own, _covariance(centered)] if takes_moments else []
            moments = [moment.detach().requires_grad_() for moment in moments]
            ctx.outputs = statistics(*moments or (None, None))
        ctx.inputs, ctx.moments = (*moments, *parameters), len(moments)
        mean, root = (value.detach() for value in ctx.outputs)
        shift = None
        if not takes_moments:
            centered, own = _centered(x, rows, mean)
        elif ctx.outputs[0] is not moments[0]:
            shift = own - mean
        ctx.save_for_backward(x, weight, bias, own, root, shift)
        ctx.rows = rows
        return _affine(_product(root, centered, shift), x.shape, weight, bias).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, own, root, shift = ctx.saved_tensors
        _, _, _, _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        with without_autocast(x):
            if torch.is_grad_enabled():  # create_graph: the graph is that of the plain formula
                x, weight, bias, *parameters = apart((x, weight, bias, *ctx.inputs[ctx.moments :]))

                def statistics(*moments):
                    return replayed(ctx.outputs, ctx.inputs, (*moments[: ctx.moments], *parameters))

                y = _spell_out(x, ctx.rows, statistics, weight, bias, ctx.moments > 0)
                inputs = x, weight, bias, *parameters
                dx, dweight, dbias, *of_parameters = gradients(y, inputs, grad, create_graph=True)
                return dx, None, None, None, dweight, dbias, *of_parameters
            centered, _ = _centered(x, ctx.rows, own)
            grad, dweight, dbias = grad.to(centered.dtype), None, None
            if needs_weight:
                z = _product(root, centered, shift).reshape(x.shape)
                _, products = elements.reduce(grad, z, z.new_zeros(z.shape[:2]))
                dweight = products.sum(0).to(weight.dtype)
            if needs_bias:  # not the sum that reduce makes, which is less precise in long rows
                dbias = grad.sum(2).sum(0).to(bias.dtype)
            grad = _affine(grad, x.shape, weight, None).reshape(ctx.rows)
            dx = root.mT @ grad
            found: list[Any] = []
            if ctx.inputs:
                total = grad.sum(2, keepdim=True)
                droot = grad @ centered.mT
                if shift is not None:
                    droot = droot.baddbmm_(total, shift[:, None])
                dmean = -(root.mT @ total).squeeze(2)
                # also where x needs no gradient: ranks may wait for this one
                found += torch.autograd.grad(
                    ctx.outputs, ctx.inputs, (dmean, droot), retain_graph=True, materialize_grads=True
                )
            if ctx.moments:
                values = max(ctx.rows[2], 1)
                down, dcovariance = found[:2]
                dx = dx.baddbmm_((dcovariance + dcovariance.mT) / values, centered).add_(down[:, :, None] / values)
            dx = dx.reshape(x.shape).to(x.dtype) if ctx.needs_input_grad[0] else None
            return dx, None, None, None, dweight, dbias, *found[ctx.moments :]


def _spell_out(x, rows, statistics, weight, bias, takes_moments):
    shift = None
    if takes_moments:
        centered, own = _centered(x, rows)
        mean, root = statistics(own, _covariance(centered))
        if mean is not own:
            shift = own - mean
    else:
        mean, root = statistics(None, None)
        centered, _ = _centered(x, rows, mean)
    return _affine(_product(root, centered, shift), x.shape, weight, bias).to(x.dtype)


def _centered(x, rows, mean=None):
    """x as rows, less a mean, that of each row if none is given; and this mean, (B, R)."""
    x = x.to(statistics_dtype(x)).reshape(rows)
    if mean is None:
        mean = x.sum(2) / max(rows[2], 1)
    return x - mean[:, :, None], mean


def _covariance(centered):
    return centered @ centered.transpose(1, 2) / max(centered.shape[2], 1)


def _product(root, centered, shift):
    """``root @ (x - mean)``, of x less the mean of each row, and the distance of that from the other mean."""
    z = root @ centered
    return z if shift is None else z + root @ shift[:, :, None]


def _affine(z, shape, weight, bias):
    z = z.reshape(shape)
    for parameter, apply in ((weight, torch.mul), (bias, torch.add)):
        if parameter is not None:
            z = apply(z, parameter[:, None])
    return z
