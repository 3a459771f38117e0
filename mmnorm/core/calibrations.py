"""A normalization on the plane between two calibrations by statistics of each position over the channels (paper rbn).

With K a position's mean or deviation over the channels, ``z = x + a K(x)`` is what has the moments that the plane is
of; the plane makes ``u = s (z - mu)`` of it; and ``y = w u sigmoid(d + c K(u)) + b``. Each of the two may be left out;
without the second ``y = u + t``, with a bias t of the plane.

K is of all channels at a position, which a kernel has at once, and a plane's sums are of all positions: x is read for
the moments of z and again for y, x and the result's gradient for the sums of the backward pass and again for the
gradient of x. So the least that must be moved is 3 times the tensor forward and 5 times backward, as of a plane alone,
and the kernels move that.
"""

from collections.abc import Callable, Iterable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from . import elements
from .backends import or_kernel, spelled_out
from .elements import spread, statistics_dtype
from .plane import apart, gradients, like, plane_gradients, replayed, scaled, spell_out

MEAN, STD = 1, 2
_unsafe_view = torch.ops.aten._unsafe_view.default
_MODULE = 'calibration_kernels'


class Calibration(NamedTuple):
    """What is done at each position, before and behind the plane.

    Attributes:
        center, gate: Which statistic the calibration is by: 0 (there is none), MEAN or STD, sqrt(variance + eps).
        eps: Of these.
        center_weight, gate_weight, gate_bias, weight, bias: a, c, d, w and b, (C,) each. A calibration that there is
            has all of its own, but w and b may be None: 1 and 0.
    """

    center: int
    gate: int
    eps: float
    center_weight: Tensor | None = None
    gate_weight: Tensor | None = None
    gate_bias: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All that may need a gradient."""
        return self.center_weight, self.gate_weight, self.gate_bias, self.weight, self.bias

    def of(self, *tensors: Tensor | None) -> 'Calibration':
        """The same, of other :meth:`tensors`."""
        return Calibration(self.center, self.gate, self.eps, *tensors)


def calibrate(
    x: Tensor, statistics: Callable, eps: float, what: Calibration, parameters: Iterable[Tensor | None] = ()
) -> Tensor:
    """Normalize a tensor by statistics on the moment plane, with calibrations before and behind it.

    Args:
        x (Tensor): Floating point, shape (N, C, *S); N may be 0. Never modified.
        statistics, eps, parameters: As of :func:`mmnorm.core.normalize`, of the moments of z; the bias that they
            give is 0 where there is a gate.
        what (Calibration): The calibrations.

    Returns:
        Tensor: y, with the shape, type and memory format of x. For the backward pass x is kept, and what is small.
    """
    dtype = statistics_dtype(x)
    what = what.of(*(tensor if tensor is None else tensor.to(dtype) for tensor in what.tensors()))
    if spelled_out() or is_traceable_wrapper_subclass(x):
        return _spell_out(x, statistics, eps, what)
    return like(_Calibrate.apply(x, statistics, eps, what, *what.tensors(), *parameters), x)


def _spell_out(x, statistics, eps, what):
    z, _ = _centered(x.to(statistics_dtype(x)), what)
    return _gated(spell_out(z, statistics, eps), what)[0].to(x.dtype)


class _Calibrate(torch.autograd.Function):
    """As :class:`mmnorm.core.plane._Normalize`, of z and u. With h = w dL/dy, g = sigmoid(d + c K(u)), f = g (1 - g):
        dL/dd = sum(h u f)      dL/dc = sum(h u f K(u))      dL/dw = sum(dL/dy u g)      dL/db = sum(dL/dy)
        dL/du = h g + K'(u) k,  k = sum over the channels of c h u f at a position
    where K' is 1 / C of a mean, and (u - mean(u)) / (C K(u)) of a deviation. The plane makes dL/dz of dL/du, and then
        dL/da = sum(dL/dz K(x))      dL/dx = dL/dz + K'(x) (sum over the channels of a dL/dz)
    """

    @staticmethod
    def forward(ctx, x, statistics, eps, what, *tensors):
        kept, own_mean, own_var = calibrated_moments(x, what)
        with torch.enable_grad():
            plane = [moment.detach().requires_grad_() for moment in (own_mean, own_var)]
            ctx.outputs = statistics(*plane, prod(x.shape[2:]))
        detached = (value.detach() if torch.is_tensor(value) else value for value in ctx.outputs)
        mean, rstd, scale, bias = scaled(detached, eps, own_mean.dtype)
        ctx.inputs = *plane, *tensors[len(what.tensors()) :]
        ctx.eps, ctx.what = eps, Calibration(what.center, what.gate, what.eps)
        ctx.save_for_backward(x, own_mean, mean, rstd, scale, *what.tensors())
        return calibrated(x, what, kept, mean, scale, bias)

    @staticmethod
    def backward(ctx, grad):
        x, own_mean, mean, rstd, scale, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: the graph is that of the plain formula
            parameters = ctx.inputs[2:]
            x, *copies = apart((x, *tensors, *parameters))
            tensors, parameters = copies[: len(tensors)], copies[len(tensors) :]

            def statistics(mean, var, _):
                return replayed(ctx.outputs, ctx.inputs, (mean, var, *parameters))

            y = _spell_out(x, statistics, ctx.eps, ctx.what.of(*tensors))
            dx, *found = gradients(y, (x, *tensors, *parameters), grad, create_graph=True)
            return dx, None, None, None, *found
        what = ctx.what.of(*tensors)
        du, z, total, centered, *of_gate = calibrated_sums(x, what, grad, own_mean, mean, scale)
        dmean, dvar, *found = plane_gradients(ctx.outputs, ctx.inputs, total, centered, own_mean, mean, rstd, scale)
        dx, dcenter = calibrated_gradient(x, what, grad, du, z, own_mean, mean, scale, dmean, dvar)
        needed = (value if needed else None for value, needed in zip((dcenter, *of_gate), ctx.needs_input_grad[4:]))
        return dx, None, None, None, *needed, *found


@or_kernel(module=_MODULE)
def calibrated_moments(x: Tensor, what: Calibration) -> tuple[Tensor | None, Tensor, Tensor]:
    """z, (N, C, L), and its mean and biased variance, (N, C); of a kernel only these."""
    z, _ = _centered(_flat(x), what)
    return z, *elements.take_moments(z)[1:3]


@or_kernel(module=_MODULE)
def calibrated(x: Tensor, what: Calibration, z: Tensor | None, mean: Tensor, scale: Tensor, bias: Any) -> Tensor:
    """y, of z where it is there; mean, scale and bias broadcast to (N, C), the bias where there is no gate."""
    if z is None:
        z, _ = _centered(_flat(x), what)
    u = _normalized(z, mean, scale)
    y = _gated(u, what)[0] if what.gate else u + spread(bias, u)
    return _unsafe_view(y.to(x.dtype), x.shape)


@or_kernel(module=_MODULE)
def calibrated_sums(x: Tensor, what: Calibration, grad: Tensor, own_mean: Tensor, mean: Tensor, scale: Tensor) -> tuple:
    """What the backward pass sums up over the positions.

    Returns:
        tuple: dL/du and z - own_mean, (N, C, L), which are None of a kernel; the sums of dL/du and of
        ``dL/du (z - own_mean)``, (N, C); dL/dc, dL/dd, dL/dw and dL/db, (C,), which are None without a gate.
    """
    z, _ = _centered(_flat(x), what)
    g, of_gate = _flat(grad).to(z.dtype), (None,) * 4
    if what.gate:
        u = _normalized(z, mean, scale)
        _, k, slope, gate = _gated(u, what)
        weighted = g if what.weight is None else g * spread(what.weight, g)
        argument = weighted * u * gate * (1 - gate)
        of_gate = tuple(value.sum((0, 2)) for value in (argument * k, argument, g * u * gate, g))
        g = weighted * gate + slope * (argument * spread(what.gate_weight, g)).sum(1, keepdim=True)
    z = z - spread(own_mean, z)
    return g, z, g.sum(2), (g * z).sum(2), *of_gate


@or_kernel(module=_MODULE)
def calibrated_gradient(
    x: Tensor,
    what: Calibration,
    grad: Tensor,
    du: Tensor | None,
    z: Tensor | None,
    own_mean: Tensor,
    mean: Tensor,
    scale: Tensor,
    dmean: Tensor,
    dvar: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """dL/dx, and dL/da, (C,), which is None without centering; of dL/du and z - own_mean where they are there."""
    if du is None or z is None:
        du, z, *_ = calibrated_sums(x, what, grad, own_mean, mean, scale)
    length = max(prod(x.shape[2:]), 1)
    dz = spread(scale, z) * du + spread(dmean / length, z) + spread(dvar * (2 / length), z) * z
    dcenter = None
    if what.center:
        k, slope = _statistic(what.center, _flat(x).to(z.dtype), what.eps)
        dcenter = (dz * k).sum((0, 2))
        dz = dz + slope * (dz * spread(what.center_weight, z)).sum(1, keepdim=True)
    return dz.to(x.dtype).reshape(x.shape), dcenter


def _flat(x):
    """x as (N, C, L), in the type of statistics."""
    return x.to(statistics_dtype(x)).reshape(*x.shape[:2], prod(x.shape[2:]))


def _centered(x, what):
    """z, and K(x)."""
    if not what.center:
        return x, None
    k, _ = _statistic(what.center, x, what.eps)
    return x + spread(what.center_weight, x) * k, k


def _normalized(z, mean, scale):
    return spread(scale, z) * (z - spread(mean, z))


def _gated(u, what):
    """y, K(u), its derivative, and the sigmoid."""
    if not what.gate:
        return u, None, None, None
    k, slope = _statistic(what.gate, u, what.eps)
    gate = torch.sigmoid(spread(what.gate_bias, u) + spread(what.gate_weight, u) * k)
    y = u * gate
    for parameter, apply in ((what.weight, torch.mul), (what.bias, torch.add)):
        y = y if parameter is None else apply(y, spread(parameter, u))
    return y, k, slope, gate


def _statistic(which, x, eps):
    """K, (N, 1, *S), and its derivative by x."""
    mean = x.mean(1, keepdim=True)
    if which == MEAN:
        return mean, 1 / x.shape[1]
    centered = x - mean
    k = torch.sqrt(centered.square().mean(1, keepdim=True) + eps)
    return k, centered / (k * x.shape[1])
