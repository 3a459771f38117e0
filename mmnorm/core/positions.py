"""Normalization of each position over the channels, for which there is no plane."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .backends import kernels_for, or_kernel, spelled_out
from .elements import spread, statistics_dtype
from .plane import apart, gradients, recomputed, without_autocast

_MODULE = 'position_kernels'


def normalize_positions(x: Tensor, channels: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalize each position by its mean and deviation over the channels, then scale and shift each channel.

    What it must move is x and the result forward, x, the result's gradient and its own backward: 2 and 3 times the
    tensor, since all that a position's statistics are taken over fits on a card's multiprocessor. The kernels move
    that.

    Args:
        x (Tensor): Floating point, (N, C, *S); N may be 0.
        channels (int): C, as a number also for an exporter that traces shapes.
        weight, bias (Tensor or None): (C,) each. None: 1 and 0.
        eps (float): Added to the variance.

    Returns:
        Tensor: With the shape and type of x. For the backward pass x is kept, and the moments.
    """
    weight, bias = (p if p is None else p.to(statistics_dtype(x)) for p in (weight, bias))
    if not spelled_out() and not is_traceable_wrapper_subclass(x) and _has_passes(x, weight, bias, eps):
        return _OverChannels.apply(x, weight, bias, eps)

    def by_layer_norm(x, weight, bias):
        return _by_layer_norm(x, channels, weight, bias, eps)

    # a copy in float32 is not kept
    if x.dtype.itemsize < 4:
        return recomputed(by_layer_norm, x, weight, bias)
    return by_layer_norm(x, weight, bias)


def _has_passes(x, *args):
    # layer_norm wants the channels last; where they are not, it copies to and fro, and on a CPU that is what it costs
    is_cut = x.is_cpu and x.is_contiguous() and x.dim() > 2 and x.numel()
    return is_cut or kernels_for(over_channels, _MODULE, x, (x, *args))[1] is not None


def _by_layer_norm(x, channels, weight, bias, eps):
    # in half precision ATen would sum the gradients of weight and bias in that
    wide, last = x.to(statistics_dtype(x)), x.dim() - 1
    return F.layer_norm(wide.movedim(1, last), (channels,), weight, bias, eps).movedim(last, 1).to(x.dtype)


class _OverChannels(torch.autograd.Function):
    """``y = weight k + bias`` with ``k = r (x - m)`` and ``r = 1 / sqrt(v + eps)``, of the moments over the C channels.

    With ``h = weight dL/dy``, and means over the channels, ``dL/dx = r (h - mean(h) - k mean(h k))``.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        y, mean, rstd = over_channels(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: the graph is that of the plain formula
            x, weight, bias = apart((x, weight, bias))
            y = _by_layer_norm(x, x.shape[1], weight, bias, ctx.eps)
            return *gradients(y, (x, weight, bias), grad, create_graph=True), None
        found = over_channels_gradients(grad, x, weight, mean, rstd)
        return *(value if needed else None for value, needed in zip(found, ctx.needs_input_grad)), None


@or_kernel(module=_MODULE)
def over_channels(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize each position, as :func:`normalize_positions`, of a tensor with elements and a weight in float32 or 64.

    Returns:
        tuple[Tensor, Tensor, Tensor]: y, and the mean and ``1 / sqrt(var + eps)`` of each position, (N, 1, *S).
    """
    wide = x.to(statistics_dtype(x))
    mean = wide.mean(1, keepdim=True)
    y = wide - mean
    rstd = y.square().mean(1, keepdim=True).add_(eps).rsqrt_()
    y.mul_(rstd)
    if weight is not None:
        y.mul_(spread(weight, x))
    return (y if bias is None else y.add_(spread(bias, x))).to(x.dtype), mean, rstd


@or_kernel(x_at=1, module=_MODULE)
def over_channels_gradients(
    grad: Tensor, x: Tensor, weight: Tensor | None, position_mean: Tensor, position_rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x and, as they are of a weight of 1 and a bias of 0 where there are none, of both, (C,)."""
    (samples, channels), rows = x.shape[:2], grad.to(position_mean.dtype).flatten(2)
    if weight is None:
        weight = position_mean.new_ones(channels)
    mean, rstd = position_mean.flatten(2), position_rstd.flatten(2)
    centered = x.flatten(2) - mean
    products = rows * centered
    # a weighted sum over an axis is a product of matrices, which makes no copy
    share = (weight / -channels).expand(samples, 1, channels)
    with without_autocast(x):
        dweight, along, common = products @ rstd.mT, share @ products, share @ rows
    along.mul_(rstd).mul_(rstd)
    dx = torch.addcmul(common, centered, along, out=centered).addcmul_(rows, weight[:, None]).mul_(rstd)
    return dx.view(x.shape).to(x.dtype), dweight.sum((0, 2)), rows.sum((0, 2))
