"""The passes over the elements of a tensor, on ATen: the only code, with the kernels, that reads N x C x L values.

:mod:`mmnorm.core.plane` calls :func:`take_moments` and :func:`complete` forward, :func:`reduce` and
:func:`input_gradient` backward. Another backend is another module with functions of the same names, which
:mod:`mmnorm.core.backends` runs in their place.

Numerical decisions: statistics are float32 at least, whatever the input's type. The variance is the centered one; the
mean of squares minus the squared mean would lose 1e-3 at mean/std = 100 in float32.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from .backends import or_kernel

# native_group_norm gives 1/sqrt(var + eps); eps is taken off again, so it only bounds that reciprocal on constant
# channels. Much smaller and rounding noise of x would be magnified; much larger and small variances would drown.
_EPS = 1e-5

# Up to so many positions a mean, a subtraction and a norm are faster than a group norm: data stays in the caches
_SHORT = 256

# Up to so many elements, which stay in the caches, two plain passes in place are faster than the one of a batch norm
_CACHED = 2**21

# By the number of axes
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

_batch_norm: Callable = torch.native_batch_norm
_batch_norm_out = torch.ops.aten.native_batch_norm.out
_batch_norm_backward = torch.ops.aten.native_batch_norm_backward.default
_unsafe_view = torch.ops.aten._unsafe_view.default


def statistics_dtype(x: Tensor) -> torch.dtype:
    """The type of statistics of x: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def spread(plane: Any, x: Tensor) -> Any:
    """A plane, or a value for each channel, with an axis of 1 for each spatial axis of x; a number stays one."""
    return plane.reshape(*plane.shape, *[1] * (x.dim() - 2)) if torch.is_tensor(plane) else plane


def memory_format(x: Tensor) -> torch.memory_format:
    """The format that results have: that of x, contiguous or channels last; contiguous for others."""
    layout = _CHANNELS_LAST.get(x.dim())
    if layout is None or x.is_contiguous() or not x.is_contiguous(memory_format=layout):
        return torch.contiguous_format
    return layout


@or_kernel()
def take_moments(x: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
    """Take the moments in the way that is fastest (on a CPU var_mean takes 10 times as long), with what comes with it.

    Returns:
        tuple[Tensor or None, Tensor, Tensor, Tensor or None]: ``(x - mean) * rstd``, mean, biased variance and rstd,
        which is None for 1; of a kernel only the moments. Where there are no elements the moments are 0.
    """
    (samples, channels), length = x.shape[:2], prod(x.shape[2:])
    dtype = statistics_dtype(x)
    if not x.numel():
        zeros = x.new_zeros((samples, channels), dtype=dtype)
        return torch.empty_like(x), zeros, zeros.clone(), None
    if x.dim() == 2:  # one value each
        mean = x.to(dtype)
        return torch.zeros_like(x), mean, torch.zeros_like(mean), None
    if length <= _SHORT and x.dtype == dtype:
        positions = tuple(range(2, x.dim()))
        mean = x.mean(positions)
        centered = x.contiguous() - spread(mean, x)
        var = torch.linalg.vector_norm(centered, dim=positions).square_().div_(length)
        return centered, mean, var, None
    source, one, zero = _for_statistics(x.contiguous()), None, None
    if source.dtype != dtype:
        # weight and bias are passed for their type, which becomes the type of the statistics
        one, zero = torch.ones(channels), torch.zeros(channels)
    hat, mean, rstd = torch.native_group_norm(source, one, zero, samples, channels, length, channels, _EPS)
    return hat, mean, rstd.pow(-2).sub_(_EPS).relu_(), rstd


@or_kernel()
def take_means(x: Tensor) -> Tensor:
    """The means alone, (N, C), of a tensor that has elements."""
    dtype = statistics_dtype(x)
    return x.flatten(2).mean(2, dtype=dtype) if x.dim() > 2 else x.to(dtype)


@or_kernel()
def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``scale * x + shift``, both (N, C), rounded once."""
    y = _batch_norm(_rows(x), *_row_parameters(scale, shift), False, 0.0, 0.0)[0]
    # not view: autograd forbids to modify a view that a Function made, and an in-place ReLU mostly follows
    return _unsafe_view(y, x.shape)


@or_kernel()
def complete(x: Tensor, moments: tuple, mean: Tensor, scale: Tensor, bias: Tensor | float) -> Tensor:
    """Compute ``scale * (x - mean) + bias`` in the place of the normalized copy that came with the moments.

    Args:
        x (Tensor): (N, C, *S).
        moments (tuple): What :func:`take_moments` returned; its first tensor is overwritten.
        mean, scale, bias (Tensor): Broadcast to (N, C).
    """
    hat, own_mean, _, rstd = moments
    if not x.numel():
        return hat
    if x.dtype != scale.dtype:
        # half precision would round three times on the way over hat
        shift = bias - mean * scale
        return affine(x, scale.expand(x.shape[:2]), shift.expand(x.shape[:2]))
    if hat is None:  # the moments came from a kernel, and one for this is not to be had
        hat = x - spread(own_mean, x)
    distance = own_mean - mean
    shift = torch.addcmul(bias, distance, scale) if torch.is_tensor(bias) else distance.mul_(scale).add_(bias)
    scale = scale if rstd is None else scale / rstd
    if hat.numel() < _CACHED or not hat.is_cpu:
        return hat.mul_(spread(scale, x)).add_(spread(shift, x))
    rows, none = _rows(hat), hat.new_empty(0)
    parameters = _row_parameters(scale.expand_as(shift), shift)
    _batch_norm_out(rows, *parameters, False, 0.0, 0.0, out=rows, save_mean=none, save_invstd=none)
    return hat


@or_kernel(x_at=1)
def reduce(grad: Tensor, x: Tensor, own_mean: Tensor) -> tuple[Tensor, Tensor]:
    """``sum(grad)`` and ``sum(grad * (x - own_mean))`` over the positions, (N, C) each, as own_mean is."""
    if not x.numel():
        return own_mean, own_mean  # zeros
    # not group_norm's backward, which takes mean * sum(grad) off sum(grad * x)
    one = torch.ones_like(own_mean).view(-1)
    mean, rows = own_mean.reshape(-1), _for_statistics(_rows(x))
    _, centered, total = _batch_norm_backward(
        _for_statistics(_rows(grad)), rows, one, None, None, mean, one, True, 0.0, [False, True, True]
    )
    return total.view_as(own_mean), centered.view_as(own_mean)


@or_kernel(x_at=1)
def input_gradient(grad: Tensor, x: Tensor, own_mean: Tensor, scale: Tensor, dmean: Tensor, dvar: Tensor) -> Tensor:
    """``scale * grad + dmean / L + 2 * dvar * (x - own_mean) / L``, all planes broadcasting to (N, C)."""
    if not x.numel():
        return torch.empty_like(x)
    plane, length = x.shape[:2], prod(x.shape[2:])
    scale, c1 = scale.to(own_mean).expand(plane), (dvar * (2 / length)).expand(plane)
    if x.dtype != own_mean.dtype:
        # half precision: the centered term is rounded once, as a whole
        return affine(grad, scale, dmean / length).add_(affine(x, c1, -c1 * own_mean))
    shift = torch.addcmul(dmean / length, c1, own_mean, value=-1)
    # in one place, for memory that is new is slow
    dx = affine(x, c1, shift) if x.is_contiguous() else torch.addcmul(spread(shift, x), spread(c1, x), x)
    return dx.addcmul_(grad, spread(scale, x))


def _rows(x):
    """View x as one sample in which every channel of every sample is a channel: (1, N C, L)."""
    return x.reshape(1, x.shape[0] * x.shape[1], -1).contiguous()


def _row_parameters(scale, shift):
    """Of a batch norm in evaluation mode, which is ATen's fastest affine: ``(x - 0) / sqrt(1 + 0) * scale + shift``."""
    scale = scale.reshape(-1)
    return scale, shift.reshape(-1), torch.zeros_like(scale), torch.ones_like(scale)


def _for_statistics(x):
    # ATen's CPU kernels keep the statistics of half precision in float32, its CUDA kernels do not
    return x if x.is_cpu else x.to(statistics_dtype(x))
