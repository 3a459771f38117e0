"""The one operation that touches the elements of a tensor: take its moments, then normalize by what came of them.

A normalizer is a function on the *moment plane*, the (N, C) means and biased variances of a tensor (N, C, *S). Only
:func:`normalize` reads the N x C x L elements, so every normalizer built on it moves about the memory that a BatchNorm
moves, and keeps what a BatchNorm keeps for the backward pass: x and tensors of the plane's size.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from . import elements
from .backends import spelled_out
from .elements import memory_format, spread, statistics_dtype

_unsafe_view = torch.ops.aten._unsafe_view.default


def normalize(
    x: Tensor, statistics: Callable, eps: float, parameters: Iterable[Tensor | None] = (), takes_var: bool = True
) -> Tensor:
    """Normalize a tensor by statistics that are computed on its moment plane.

    Args:
        x (Tensor): Floating point, shape (N, C, *S); N may be 0. Never modified.
        statistics (callable): ``(mean, var, count) -> (mean, var, weight, bias)``, plain differentiable torch. It is
            given the mean and the biased variance of each channel of each sample, (N, C) in float32 or float64, and
            the number L of elements that they are taken over. What it returns broadcasts to (N, C); weight and bias
            may be numbers.
        eps (float): Added to the variance that ``statistics`` returns.
        parameters (iterable[Tensor]): All that ``statistics`` uses and that needs a gradient.
        takes_var (bool): Whether ``statistics`` uses the variance; if not, it may get None, which saves a pass.

    Returns:
        Tensor: ``weight * (x - mean) / sqrt(var + eps) + bias``, with the shape, type and memory format of x.
    """
    parameters = [p for p in parameters if p is not None and p.requires_grad]
    if spelled_out():
        return spell_out(x, statistics, eps)
    if torch.is_grad_enabled() and (x.requires_grad or parameters):
        return like(_Normalize.apply(x, statistics, eps, *parameters), x)
    count = prod(x.shape[2:])
    if takes_var or not x.numel():
        moments = elements.take_moments(x)
        mean, _, scale, bias = scaled(statistics(moments[1], moments[2], count), eps, moments[1].dtype)
        return like(elements.complete(x, moments, mean, scale, bias), x)
    own_mean = elements.take_means(x)
    mean, _, scale, bias = scaled(statistics(own_mean, None, count), eps, own_mean.dtype)
    scale = scale.expand_as(own_mean)
    return like(elements.affine(x, scale, bias - mean * scale), x)


def recomputed(function: Callable, x: Tensor, *others: Tensor | None) -> Any:
    """``function(x, *others)``, of which the backward pass keeps the inputs alone and computes the rest again.

    Args:
        function (callable): Plain differentiable torch without side effects. It runs without autocast.
        x, others (Tensor, Tensor or None): All that it uses and that needs a gradient.

    Returns:
        Tensor or tuple[Tensor]: What the function returns.
    """
    if torch.is_grad_enabled() and not spelled_out():
        return _Recomputed.apply(function, x, *others)
    with without_autocast(x):
        return function(x, *others)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, *inputs):
        ctx.function = function
        ctx.save_for_backward(*inputs)
        with without_autocast(inputs[0]):
            return function(*inputs)

    @staticmethod
    def backward(ctx, *grads):
        create_graph = torch.is_grad_enabled()
        inputs = apart(ctx.saved_tensors)
        with torch.enable_grad(), without_autocast(inputs[0]):
            outputs = ctx.function(*inputs)
        return None, *gradients(outputs, inputs, grads, create_graph)


class _Normalize(torch.autograd.Function):
    """``y = s (x - mu) + b``, ``s = w r``, ``r = 1 / sqrt(var + eps)``; mu, var, w, b come from the plane (m, v).

    With g = dL/dy, sums over the L positions and d = r sum(g (x - mu)):
        dL/dmu = -s sum(g)        dL/dvar = -s r d / 2        dL/dw = d        dL/db = sum(g)
    autograd through the plane makes dL/dm and dL/dv of these, and the gradients of the parameters. Each x is in
        m = sum(x) / L            v = sum((x - m)^2) / L
    and in y itself, so
        dL/dx = s g + dL/dm / L + dL/dv 2 (x - m) / L
    Where a graph of the gradient is asked for, it is that of the spelled-out formula instead.
    """

    @staticmethod
    def forward(ctx, x, statistics, eps, *parameters):
        moments = elements.take_moments(x)
        own_mean = moments[1]
        with torch.enable_grad():
            plane = [moment.detach().requires_grad_() for moment in moments[1:3]]
            ctx.outputs = statistics(plane[0], plane[1], prod(x.shape[2:]))
        ctx.inputs = *plane, *parameters
        detached = (value.detach() if torch.is_tensor(value) else value for value in ctx.outputs)
        mean, rstd, scale, bias = scaled(detached, eps, own_mean.dtype)
        ctx.save_for_backward(x, own_mean, mean, rstd, scale)
        ctx.eps = eps
        return elements.complete(x, moments, mean, scale, bias)

    @staticmethod
    def backward(ctx, grad):
        x, own_mean, mean, rstd, scale = ctx.saved_tensors
        if torch.is_grad_enabled():
            x, *parameters = apart((x, *ctx.inputs[2:]))

            def statistics(mean, var, _):
                return replayed(ctx.outputs, ctx.inputs, (mean, var, *parameters))

            y = spell_out(x, statistics, ctx.eps)
            dx, *found = gradients(y, (x, *parameters), grad, create_graph=True)
            return dx, None, None, *found
        total, centered = elements.reduce(grad, x, own_mean)
        dmean, dvar, *found = plane_gradients(ctx.outputs, ctx.inputs, total, centered, own_mean, mean, rstd, scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = elements.input_gradient(grad, x, own_mean, scale, dmean, dvar)
        return dx, None, None, *found


def plane_gradients(
    outputs: Iterable, inputs: Sequence[Tensor], total: Tensor, centered: Tensor,
    own_mean: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor,
) -> list:  # fmt: skip
    """The gradients of the moments, which are 0 where nothing depends on them, and of the plane's parameters.

    Args:
        outputs, inputs: What ``statistics`` gave, and the moments and parameters that it is a function of.
        total, centered (Tensor): The sums of g and of g (x - m), (N, C).
        own_mean, mean, rstd, scale (Tensor): m, mu, r and s, as in :class:`_Normalize`.
    """
    dweight = (own_mean - mean).mul_(total).add_(centered).mul_(rstd)
    dvar = (scale * dweight).mul_(rstd).mul_(-0.5)
    needed = [
        (out, g if g.shape == out.shape else g.sum_to_size(out.shape))
        for out, g in zip(outputs, ((scale * total).neg_(), dvar, dweight, total))
        if torch.is_tensor(out) and out.requires_grad
    ]
    found: list = [None] * len(inputs)
    if needed:
        connected, output_gradients = zip(*needed)
        found[:] = torch.autograd.grad(connected, inputs, output_gradients, retain_graph=True, allow_unused=True)
    found[:2] = (torch.zeros_like(own_mean) if g is None else g for g in found[:2])
    return found


def replayed(results: Iterable, leaves: Iterable[Tensor], values: Iterable[Tensor]) -> list:
    """Results that a graph has of its leaves, as results of values equal to these; other results as they are.

    Nothing is computed again: what a layer's statistics do beside, such as to move running statistics on, is done once.
    """
    connected = [result for result in results if torch.is_tensor(result) and result.requires_grad]
    replays = iter(_Replay.apply(connected, leaves, *values) if connected else ())
    return [next(replays) if torch.is_tensor(result) and result.requires_grad else result for result in results]


class _Replay(torch.autograd.Function):
    """Its backward pass is that of the graph, and where that is differentiated in turn, a replay of its graph."""

    @staticmethod
    def forward(ctx, results, leaves, *values):
        ctx.results, ctx.leaves = results, leaves
        ctx.save_for_backward(*values)
        return tuple(result.detach() for result in results)

    @staticmethod
    def backward(ctx, *grads):
        if not torch.is_grad_enabled():
            found = torch.autograd.grad(ctx.results, ctx.leaves, grads, retain_graph=True, allow_unused=True)
            return None, None, *found
        leaves = [grad.detach().requires_grad_() for grad in grads]
        found = torch.autograd.grad(ctx.results, ctx.leaves, leaves, create_graph=True, allow_unused=True)
        return None, None, *replayed(found, (*ctx.leaves, *leaves), (*ctx.saved_tensors, *grads))


def apart(values: Iterable[Tensor | None]) -> list:
    """The same values, none of which is computed from another: to take gradients with respect to each by itself.

    Where a graph is recorded they have a place in it.
    """
    if torch.is_grad_enabled():
        return [value if value is None else value.view_as(value) for value in values]
    return [value if value is None else value.detach().requires_grad_(value.requires_grad) for value in values]


def gradients(outputs: Any, inputs: Iterable[Tensor | None], grads: Any, create_graph: bool) -> list[Tensor | None]:
    """The gradients of all inputs; None for those that need none."""
    wanted = [value for value in inputs if value is not None and value.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=create_graph, allow_unused=True))
    return [next(found) if value is not None and value.requires_grad else None for value in inputs]


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """A context in which operations take the types that they are given, on the device of x."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device):  # as on the meta device
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def scaled(coefficients, eps, dtype):
    """Mean, 1 / sqrt(var + eps), scale and bias of ``y = scale * (x - mean) + bias``, of what ``statistics`` gave."""
    mean, var, weight, bias = coefficients
    rstd = torch.rsqrt(var + eps)
    return mean, rstd, (weight * rstd).to(dtype), bias


def spell_out(x, statistics, eps):
    """The same in plain operations, for those who read them: compilers, exporters, torch.func."""
    count = prod(x.shape[2:])
    wide = x.to(statistics_dtype(x)).reshape(*x.shape[:2], count)
    # in one operation, which inductor makes one pass of: two, if it is spelled out further
    own_var, own_mean = torch.var_mean(wide, 2, correction=0)
    mean, _, scale, bias = (
        spread(plane, x) for plane in scaled(statistics(own_mean, own_var, count), eps, own_mean.dtype)
    )
    return ((x - mean) * scale + bias).to(x.dtype)


@torch.no_grad()
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of each sample, (N, C) in float32 at least; without gradient."""
    return elements.take_moments(x)[1:3]


def like(y: Tensor, x: Tensor) -> Tensor:
    """y, of any contiguous shape, in the shape and the memory format (contiguous or channels last) of x."""
    if spelled_out():
        y = y.reshape(x.shape)
    elif y.shape != x.shape:
        # no view: autograd forbids to modify one that leaves a Function, such as a checkpointed block
        y = _unsafe_view(y, x.shape)
    return y.contiguous(memory_format=memory_format(x))
