"""The one operation that touches the elements of a tensor: take its moments, then normalise by what came of them.

A normalizer is a function on the *moment plane*, the (N, C) means and biased variances of a tensor (N, C, *S). Only
:func:`normalize` reads the N x C x L elements, so every normalizer built on it moves the memory that a BatchNorm moves:
forward reads x twice and writes y once; backward reads x and the gradient twice and writes dx once. Saved for the
backward pass: x and tensors of the plane's size.

Numerical decisions: statistics are float32 at least, whatever the input's type. The variance is the centred one; the
mean of squares minus the squared mean would lose 1e-3 at mean/std = 100 in float32.
"""
from math import prod

import torch
from torch.autograd.function import once_differentiable

# native_group_norm gives 1/sqrt(var + eps); eps is taken off again, so it only bounds that reciprocal on constant
# channels. Much smaller and rounding noise of x would be magnified; much larger and small variances would drown.
_EPS = 1e-5

# Up to so many positions a mean, a subtraction and a norm are faster than a group norm: data stays in the caches
_SHORT = 256

_group_norm_backward = torch.ops.aten.native_group_norm_backward.default
_unsafe_view = torch.ops.aten._unsafe_view.default


def normalize(x, statistics, eps, takes_var=True):
    """Normalise a tensor by statistics that are computed on its moment plane.

    Args:
        x (Tensor): Floating point, shape (N, C, *S); N may be 0. Never modified.
        statistics (callable): ``(mean, var, count) -> (mean, var, weight, bias)``, plain differentiable torch. It is
            given the mean and the biased variance of each channel of each sample, (N, C) in float32 or float64, and
            the number L of elements that they are taken over. What it returns broadcasts to (N, C).
        eps (float): Added to the variance that ``statistics`` returns.
        takes_var (bool): Whether ``statistics`` uses the variance; if not, it may get None, which saves a pass.

    Returns:
        Tensor: ``weight * (x - mean) / sqrt(var + eps) + bias``, with the shape, type and memory format of x.
    """
    count = prod(x.shape[2:])
    if spelled_out() or x.numel() == 0:
        wide = x.to(_statistics_dtype(x)).reshape(*x.shape[:2], count)
        length = count if spelled_out() else max(count, 1)
        own_mean = wide.sum(2) / length
        own_var = (wide - own_mean.unsqueeze(2)).square().sum(2) / length
        mean, var, weight, bias = statistics(own_mean, own_var, count)
        mean, scale, bias = (_spread(plane.expand_as(own_mean), x)
                             for plane in (mean, weight * torch.rsqrt(var + eps), bias))
        return ((x - mean) * scale + bias).to(x.dtype)
    if not torch.is_grad_enabled():
        if takes_var:
            hat, own_mean, own_var, own_rstd = _instance_norm(x)
            mean, var, weight, bias = statistics(own_mean, own_var, count)
            return like(_complete(x, hat, own_mean, own_rstd, mean, weight * torch.rsqrt(var + eps), bias), x)
        own_mean = x.flatten(2).mean(2, dtype=_statistics_dtype(x)) if x.dim() > 2 else x.to(_statistics_dtype(x))
        mean, var, weight, bias = statistics(own_mean, None, count)
        scale = (weight * torch.rsqrt(var + eps)).expand_as(own_mean)
        return like(_affine(x, scale, bias - mean * scale), x)
    shared = _Shared()
    same, mean, var = _Moments.apply(x, shared)
    return like(_Normalize.apply(same, *statistics(mean, var, count), eps, shared), x)


@torch.no_grad()
def moments(x):
    """Mean and biased variance of each channel of each sample, (N, C) in float32 at least; without gradient."""
    if x.dim() == 2:
        mean = x.to(_statistics_dtype(x))
        return mean, torch.zeros_like(mean)
    return _instance_norm(x)[1:3]


def like(y, x):
    """y, of any contiguous shape, in the shape and the memory format (contiguous or channels last) of x."""
    if spelled_out():
        y = y.reshape(x.shape)
    elif y.shape != x.shape:
        # no view: autograd forbids to modify one that leaves a Function, such as a checkpointed block
        y = _unsafe_view(y, x.shape)
    for layout, dims in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if x.dim() == dims and not x.is_contiguous() and x.is_contiguous(memory_format=layout):
            return y.contiguous(memory_format=layout)
    return y.contiguous()


def spelled_out():
    """Whether a compiler or an exporter is reading: it needs plain operations, and makes something faster of them."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _statistics_dtype(x):
    return torch.promote_types(x.dtype, torch.float32)


def _spread(plane, x):
    return plane.reshape(*plane.shape, *[1] * (x.dim() - 2))


def _rows(x):
    """View x as one sample in which every channel of every sample is a channel: (1, N C, L)."""
    return x.reshape(1, x.shape[0] * x.shape[1], -1).contiguous()


def _for_statistics(x):
    # ATen's CPU kernels keep the statistics of half precision in float32, its CUDA kernels do not
    return x if x.is_cpu else x.to(_statistics_dtype(x))


def _instance_norm(x):
    """The moments in the way that is fastest (on a CPU var_mean takes 10 times as long), with what comes with them.

    Returns:
        tuple[Tensor, Tensor, Tensor, Tensor or None]: (x - mean) * rstd, mean, var and rstd, which is None for 1.
    """
    length, wide = prod(x.shape[2:]), x.dtype == _statistics_dtype(x)
    if x.dim() > 2 and length <= _SHORT and wide:
        positions = tuple(range(2, x.dim()))
        mean = x.mean(positions)
        centered = x.contiguous() - _spread(mean, x)
        var = torch.linalg.vector_norm(centered, dim=positions).square_().div_(length)
        return centered, mean, var, None
    source, one, zero = _for_statistics(x.contiguous()), None, None
    samples, channels = x.shape[:2]
    if source.dtype != _statistics_dtype(x):
        # weight and bias are passed for their type, which becomes the type of the statistics
        one, zero = torch.ones(channels), torch.zeros(channels)
    hat, mean, rstd = torch.native_group_norm(source, one, zero, samples, channels, length, channels, _EPS)
    return hat, mean, rstd.pow(-2).sub_(_EPS).relu_(), rstd


def _per_row(plane, scale):
    """Expand a plane to that of ``scale``, (N, C), as (1, N C)."""
    if plane.shape != scale.shape or plane.dtype != scale.dtype:
        plane = plane.to(scale.dtype).expand_as(scale).contiguous()
    return plane.view(1, -1)


def _affine(x, scale, shift):
    # batch_norm in evaluation mode is ATen's fastest per-channel affine: (x - 0) / sqrt(1 - 0 + 0) * scale + shift
    scale, shift = scale.reshape(-1), shift.reshape(-1)
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    y = torch.batch_norm(_rows(x), scale, shift, zero, one, False, 0., 0., False)
    # not view: autograd forbids to modify a view that a Function made, and an in-place ReLU mostly follows
    return _unsafe_view(y, x.shape)


def _complete(x, hat, own_mean, own_rstd, mean, scale, bias):
    """scale * (x - mean) + bias, made in the place of ``hat``, which is (x - own_mean) * own_rstd."""
    if x.dtype != scale.dtype:
        # half precision would round three times on the way over hat
        shift = bias - mean * scale
        return _affine(x, scale.expand(x.shape[:2]), shift.expand(x.shape[:2]))
    shift = (own_mean - mean).mul_(scale).add_(bias)
    return hat.mul_(_spread(scale if own_rstd is None else scale / own_rstd, x)).add_(_spread(shift, x))


class _Shared:
    """What the two functions of one call hand each other, so that no pass over the elements is made twice.

    ``hat``, ``mean``, ``rstd``: the instance-normalised input that comes with the moments, ``(x - mean) * rstd``; the
    result is completed in place in it. ``scale``: of the result, (N, C); :class:`_Moments` applies it to the gradient
    in the pass in which it adds the moments' gradients.
    """
    __slots__ = ('hat', 'mean', 'rstd', 'scale')


class _Moments(torch.autograd.Function):
    """x -> x, mean, var. The gradient that it takes for its first output is that of :class:`_Normalize`'s result."""

    @staticmethod
    def forward(ctx, x, shared):
        shared.hat, mean, var, shared.rstd = _instance_norm(x)
        # detached, because an output kept here would keep this very node alive
        shared.mean = mean.detach()
        ctx.save_for_backward(x, mean)
        ctx.shared = shared
        return x, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, dmean, dvar):
        x, mean = ctx.saved_tensors
        length = prod(x.shape[2:])
        c1 = dvar * (2 / length)
        if x.dtype != c1.dtype:
            # half precision: the centred term is rounded once, as a whole
            dx = _affine(grad, ctx.shared.scale, dmean / length)
            return dx.add_(_affine(x, c1, -c1 * mean)), None
        c0 = (dmean / length).addcmul_(c1, mean, value=-1)
        return _affine(grad, ctx.shared.scale, c0).addcmul_(x, _spread(c1, x)), None


class _Normalize(torch.autograd.Function):
    """x, mean, var, weight, bias -> the result, in the place of ``shared.hat``; x gets the result's own gradient."""

    @staticmethod
    def forward(ctx, x, mean, var, weight, bias, eps, shared):
        rstd = torch.rsqrt(var + eps)
        hat, shared.hat = shared.hat, None
        shared.scale = (weight * rstd).to(_statistics_dtype(x)).expand(x.shape[:2])
        ctx.save_for_backward(x, mean, rstd, shared.scale)
        ctx.shapes = mean.shape, var.shape, weight.shape, bias.shape
        return _complete(x, hat, shared.mean, shared.rstd, mean, shared.scale, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gradients = [None] * 4
        if any(ctx.needs_input_grad[1:5]):
            x, mean, rstd, scale = ctx.saved_tensors
            rows = _for_statistics(_rows(x))
            _, channels, length = rows.shape
            own_mean, own_rstd = (_per_row(plane, scale) for plane in (mean, rstd))
            # group_norm's weight gradient is sum(grad * (x - mean) * rstd), its bias gradient sum(grad). The weight
            # counts only for its type.
            _, dweight, dbias = _group_norm_backward(
                _for_statistics(_rows(grad)), rows, own_mean, own_rstd, own_rstd.view(-1), 1, channels, length,
                channels, [False, True, True])
            dweight, dbias = dweight.view_as(scale), dbias.view_as(scale)
            dmean, dvar = (scale * dbias).neg_(), (scale * dweight).mul_(rstd).mul_(-0.5)
            gradients = [g if g.shape == s else g.sum_to_size(s)
                         for g, s in zip((dmean, dvar, dweight, dbias), ctx.shapes)]
        return grad, *gradients, None, None
