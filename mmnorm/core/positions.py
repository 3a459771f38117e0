"""Normalization of each position over the channels, for which there is no plane."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from . import elements
from .backends import spelled_out
from .elements import spread
from .plane import apart, gradients, recomputed


def normalize_positions(x: Tensor, channels: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalize each position by its mean and deviation over the channels, then scale and shift each channel.

    Args:
        x (Tensor): Floating point, (N, C, *S); N may be 0.
        channels (int): C, as a number also for an exporter that traces shapes.
        weight, bias (Tensor or None): (C,) each. None: 1 and 0.
        eps (float): Added to the variance.

    Returns:
        Tensor: With the shape and type of x. For the backward pass x is kept, and the moments.
    """
    if x.dtype.itemsize >= 4:
        return _normalize(x, channels, weight, bias, eps)
    # in half precision ATen would sum the gradients of weight and bias in that; a copy in float32 is not kept
    return recomputed(lambda x, w, b: _normalize(x.float(), channels, w, b, eps).to(x.dtype), x, weight, bias)


def _normalize(x, channels, weight, bias, eps):
    weight, bias = (p if p is None else p.to(x.dtype) for p in (weight, bias))
    # layer_norm wants the channels last; where they are not, it copies to and fro, and on a CPU that is what it costs
    by_layer_norm = not (x.is_cpu and x.is_contiguous() and x.dim() > 2 and x.numel())
    if by_layer_norm or spelled_out() or is_traceable_wrapper_subclass(x):
        return _by_layer_norm(x, channels, weight, bias, eps)
    return _OverChannels.apply(x, weight, bias, eps)


def _by_layer_norm(x, channels, weight, bias, eps):
    last = x.dim() - 1
    return F.layer_norm(x.movedim(1, last), (channels,), weight, bias, eps).movedim(last, 1)


class _OverChannels(torch.autograd.Function):
    """``y = weight k + bias`` with ``k = r (x - m)`` and ``r = 1 / sqrt(v + eps)``, of the moments over the C channels.

    With ``h = weight dL/dy``, and means over the channels, ``dL/dx = r (h - mean(h) - k mean(h k))``.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        mean = x.mean(1, keepdim=True)
        y = x - mean
        rstd = y.square().mean(1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.eps = eps
        y.mul_(rstd)
        if weight is not None:
            y.mul_(spread(weight, x))
        return y if bias is None else y.add_(spread(bias, x))

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: the graph is that of the plain formula
            x, weight, bias = apart((x, weight, bias))
            y = _by_layer_norm(x, x.shape[1], weight, bias, ctx.eps)
            return *gradients(y, (x, weight, bias), grad, create_graph=True), None
        k = (x - mean).mul_(rstd)
        dx = dweight = dbias = None
        if any(ctx.needs_input_grad[1:3]):
            total, product = elements.reduce(grad, k, x.new_zeros(x.shape[:2]))
            dweight, dbias = (
                value.sum(0) if needed else None for value, needed in zip((product, total), ctx.needs_input_grad[1:3])
            )
        if ctx.needs_input_grad[0]:
            dx = grad.clone() if weight is None else grad * spread(weight, x)
            along = (dx * k).mean(1, keepdim=True)
            dx = dx.sub_(dx.mean(1, keepdim=True)).addcmul_(k, along, value=-1).mul_(rstd)
        return dx, dweight, dbias, None
