"""Whitening of the rows of matrices, whose means and covariances play the part that the moments play in a plane."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

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

    The least that must be moved is x for the moments, x and the result, and backward x and the result's gradient for
    the sums, both and the gradient of x: 3 and 5 times the tensor. ATen, which makes a centered copy of x in float32
    and reads it for each product, moves 22 of GW's in float32 and 50 in half precision.

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
        if spelled_out() or not torch.is_grad_enabled() or is_traceable_wrapper_subclass(x):
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
            # each run of L values has a product of its own, whose rows weight multiplies, and not the gradient itself
            plane, (matrices, size, values) = x.shape[:2], ctx.rows
            runs = x.shape[0] * x.shape[1] // max(matrices * size, 1)
            c, g = (t.reshape(matrices, size, runs, x.shape[2]).transpose(1, 2) for t in (centered, grad.to(own.dtype)))
            parts: Iterable = [(slice(None), i) for i in range(runs)] if runs <= matrices else range(matrices)
            scale = own.new_ones(()) if weight is None else weight.to(own.dtype)
            scale = scale.expand(plane).reshape(matrices, size, runs).mT
            products, sums = own.new_empty(matrices, runs, size, size), g.sum(3)
            for part in parts:
                torch.bmm(g[part], c[part].mT, out=products[part])
            if shift is not None:
                products += sums[..., None] * shift[:, None, None]
            dweight = dbias = dx = None
            if needs_weight:
                dweight = (products * root[:, None]).sum(3).mT.reshape(plane).sum(0).to(weight.dtype)
            if needs_bias:
                dbias = sums.mT.reshape(plane).sum(0).to(bias.dtype)
            found: list[Any] = []
            if ctx.inputs:
                droot = (products * scale[..., None]).sum(1)
                dmean = -(root.mT @ (sums * scale).sum(1)[..., None]).squeeze(2)
                # also where x needs no gradient: ranks may wait for this one
                found += torch.autograd.grad(
                    ctx.outputs, ctx.inputs, (dmean, droot), retain_graph=True, materialize_grads=True
                )
            if ctx.needs_input_grad[0]:
                dx = torch.empty_like(centered).view(matrices, size, runs, x.shape[2]).transpose(1, 2)
                of_grad = root.mT[:, None] * scale[:, :, None]
                if ctx.moments:
                    down, dcovariance = found[:2]
                    of_x = ((dcovariance + dcovariance.mT) / max(values, 1))[:, None].expand_as(of_grad)
                for part in parts:
                    torch.bmm(of_grad[part], g[part], out=dx[part])
                    if ctx.moments:
                        dx[part].baddbmm_(of_x[part], c[part])
                if ctx.moments:
                    dx.add_(down[:, None, :, None] / max(values, 1))
                dx = dx.transpose(1, 2).reshape(x.shape).to(x.dtype)
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
    x = x.reshape(rows)
    if mean is None:
        mean = x.sum(2, dtype=statistics_dtype(x)) / max(rows[2], 1)
    return x - mean[:, :, None], mean


def _covariance(centered):
    return centered @ centered.transpose(1, 2) / max(centered.shape[2], 1)


def _product(root, centered, shift):
    """``root @ (x - mean)``, of x less the mean of each row, and the distance of that from the other mean."""
    z = root @ centered
    return z if shift is None else z + root @ shift[:, :, None]


def _affine(z, shape, weight, bias):
    z = z.reshape(shape)
    if weight is not None and bias is not None:
        return torch.addcmul(bias[:, None], z, weight[:, None])
    for parameter, apply in ((weight, torch.mul), (bias, torch.add)):
        if parameter is not None:
            z = apply(z, parameter[:, None])
    return z
