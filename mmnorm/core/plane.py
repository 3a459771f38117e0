"""The two operations that touch the elements of a tensor: take its moments, apply an affine.

A normalizer is a function on the *moment plane*, the (N, C) means and biased variances of a tensor (N, C, *S). Only
:func:`moments` and :func:`affine` read the N x C x L elements, so every normalizer built on them moves the memory that
a BatchNorm moves: forward reads x twice and writes y once; backward reads x and the gradient twice and writes dx once.
Saved for the backward pass: x and tensors of the plane's size.

Numerical decisions: statistics are float32 at least, whatever the input's type. The variance is the centred one; the
mean of squares minus the squared mean would lose 1e-3 at mean/std = 100 in float32.
"""
from math import prod

import torch
from torch.autograd.function import once_differentiable

# native_group_norm gives 1/sqrt(var + eps); eps is taken off again, so it only bounds that reciprocal on constant
# channels. Much smaller and rounding noise of x would be magnified; much larger and small variances would drown.
_EPS = 1e-5


def normalize(x, coefficients):
    """Normalise a tensor by coefficients that are computed on its moment plane.

    Args:
        x (Tensor): Floating point, shape (N, C, *S); N may be 0. Never modified.
        coefficients (callable): ``(mean, var, count) -> (scale, shift)``, plain differentiable torch. ``mean`` and
            ``var`` (biased) are (N, C), float32 or float64; ``count`` is the number L of elements they are taken over.
            ``scale`` and ``shift`` broadcast to (N, C).

    Returns:
        Tensor: ``scale[n, c] * x[n, c, *] + shift[n, c]``, with the shape, type and memory format of x.
    """
    same, mean, var = moments(x)
    scale, shift = coefficients(mean, var, prod(x.shape[2:]))
    y = affine(same, scale.expand_as(mean), shift.expand_as(mean))
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        y = y.contiguous(memory_format=torch.channels_last)
    return y


def moments(x):
    """Mean and biased variance of each channel of each sample.

    Args:
        x (Tensor): Shape (N, C, *S).

    Returns:
        tuple[Tensor, Tensor, Tensor]: x itself, to be passed on to :func:`affine` (its gradient then joins that of the
        moments in one pass over the elements), mean (N, C) and var (N, C).
    """
    if _plain(x):
        wide = x.to(_statistics_dtype(x)).reshape(*x.shape[:2], prod(x.shape[2:]))
        mean = wide.mean(2)
        return x, mean, (wide - mean.unsqueeze(2)).square().mean(2)
    return _Moments.apply(x)


def affine(x, scale, shift):
    """``scale * x + shift``, per sample and channel.

    Args:
        x (Tensor): Shape (N, C, *S).
        scale (Tensor): Shape (N, C).
        shift (Tensor): Shape (N, C).

    Returns:
        Tensor: Shape (N, C, *S), type of x.
    """
    if _plain(x):
        return (x * _spread(scale, x) + _spread(shift, x)).to(x.dtype)
    return _Affine.apply(x, scale, shift)


def _plain(x):
    """Whether to spell the operations out: for compilers and exporters, and for tensors without elements."""
    return x.numel() == 0 or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()


def _statistics_dtype(x):
    return torch.promote_types(x.dtype, torch.float32)


def _spread(plane, x):
    return plane.reshape(*plane.shape, *[1] * (x.dim() - 2))


def _rows(x):
    """View x as one sample in which every channel of every sample is a channel: (1, N C, L)."""
    return x.reshape(1, x.shape[0] * x.shape[1], -1).contiguous()


def _scale_and_shift(x, scale, shift):
    # batch_norm in evaluation mode is ATen's fastest per-channel affine: (x - 0) / sqrt(1 - 0 + 0) * scale + shift
    scale, shift = scale.reshape(-1), shift.reshape(-1)
    y = torch.batch_norm(
        _rows(x), scale, shift, torch.zeros_like(scale), torch.ones_like(scale), False, 0., 0., False)
    # not view: autograd forbids to modify a view that a Function made, and an in-place ReLU mostly follows
    return torch.ops.aten._unsafe_view(y, x.shape)


class _Moments(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x):
        rows = _rows(x)
        _, channels, length = rows.shape
        one = x.new_ones(channels, dtype=_statistics_dtype(x))
        # With a group per channel of a sample this is the fastest way to moments on a CPU (var_mean takes 10 times as
        # long); weight and bias are passed for their type, which is the type of the statistics.
        _, mean, rstd = torch.native_group_norm(
            rows, one, torch.zeros_like(one), 1, channels, length, channels, _EPS)
        mean, rstd = mean.view(x.shape[:2]), rstd.view(x.shape[:2])
        ctx.save_for_backward(x, mean)
        return x, mean, (rstd.pow(-2) - _EPS).clamp_min_(0)

    @staticmethod
    @once_differentiable
    def backward(ctx, dx, dmean, dvar):
        x, mean = ctx.saved_tensors
        length = prod(x.shape[2:])
        c1 = dvar * (2 / length)
        c0 = dmean / length - c1 * mean
        # dx comes from _Affine and belongs to nobody else, so it can be completed in place
        return dx.addcmul_(x, _spread(c1, x).to(x.dtype)).add_(_spread(c0, x).to(x.dtype))


class _Affine(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, scale, shift):
        ctx.save_for_backward(x, scale)
        return _scale_and_shift(x, scale, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, scale = ctx.saved_tensors
        dx = dscale = dshift = None
        if ctx.needs_input_grad[0]:
            dx = _scale_and_shift(grad, scale, torch.zeros_like(scale))
        if any(ctx.needs_input_grad[1:]):
            # group_norm's weight gradient with mean 0 and deviation 1 is sum(grad * x), its bias gradient sum(grad)
            rows = _rows(x)
            _, channels, length = rows.shape
            zero, one = scale.new_zeros(1, channels), scale.new_ones(1, channels)
            _, dscale, dshift = torch.ops.aten.native_group_norm_backward(
                _rows(grad), rows, zero, one, one.view(-1), 1, channels, length, channels,
                [False, True, True])
            dscale, dshift = dscale.view_as(scale), dshift.view_as(scale)
        return dx, dscale, dshift
