"""Statistics that are blends of those of an instance, of a sample and of a batch, with their gradient written out.

Most normalizers are of this form. :func:`mmnorm.core.normalize` computes them as well, but has autograd go through the
plane, whose many small nodes are what a layer costs on small feature maps, and launches on a GPU.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import elements
from .backends import or_kernel
from .plane import apart, gradients, like, scaled, spell_out

IN, LN, BN = range(3)


class Blend(NamedTuple):
    """What a tensor x (N, C, *S), of moments m and v, is normalized by.

    ``mean = A_IN m + A_LN LN(m) + A_BN BN(m + w m) - w m`` and ``var = B_IN v + B_LN LN(v) + B_BN BN(v)``, where LN and
    BN pool the moments of a sample and of the batch. With ``k = (m - mean) / sqrt(var + eps)`` then
    ``y = weight * (r * sigmoid(a k + b) * (x - mean) / sqrt(var + eps) + d) + bias``.

    Attributes:
        scopes: Which of IN, LN and BN take part.
        batch: What stands for BN's mean and variance, (C,) each; or, in training, a function that is told them, (G,)
            each, and the number of elements behind each of them.
        groups: G, the number of equal groups of channels that BN pools. None: each channel is one.
        ratios: Those of mean and of variance, (scopes,) or (k, scopes) for k equal groups of channels, of whose softmax
            A and B are. None: 1, of a single scope.
        weight, bias: (C,) each. None: 1 and 0.
        center: w, (C,). None: 0.
        gate: a and b, (C,) each. None: no sigmoid.
        renorm: r and d, (C,) each, constants of the gradient; or a function of BN's mean and variance and of eps that
            gives them. None: 1 and 0.
        instances: So many channels, the first ones, are normalized by m and v alone.
        correction: What v is multiplied by to begin with, as L / (L - 1) makes it unbiased.
        gate_eps: Added to the variance of which k is the deviation; None where it is the mean. With BN alone.
    """

    scopes: Sequence[int]
    batch: Callable | tuple[Tensor, Tensor]
    groups: int | None = None
    ratios: tuple[Tensor, Tensor] | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    center: Tensor | None = None
    gate: tuple[Tensor, Tensor] | None = None
    renorm: Callable | tuple[Tensor, Tensor] | None = None
    instances: int = 0
    correction: float = 1.0
    gate_eps: float | None = None

    @property
    def takes_var(self) -> bool:
        """Whether the result depends on v."""
        return tuple(self.scopes) != (BN,) or callable(self.batch) or self.instances > 0 or self.gate_eps is not None

    def mean_over(self, scope: int) -> Callable | None:
        """What takes the mean of a plane over a scope, to what broadcasts to (N, C); None for what is not pooled."""
        if scope == LN:
            return partial(torch.mean, dim=1, keepdim=True)
        if scope == IN or not callable(self.batch):
            return None
        return partial(torch.mean, dim=0, keepdim=True) if self.groups is None else self._mean_over_groups

    def _mean_over_groups(self, plane):
        samples, channels = plane.shape
        grouped = plane.reshape(samples, self.groups, -1)
        return grouped.mean((0, 2), keepdim=True).expand(1, -1, grouped.shape[2]).reshape(1, channels)

    def shares(self, channels: int) -> Tensor | None:
        """A and B, (2, scopes), or (2, scopes, C) of groups of channels."""
        if self.ratios is None:
            return None
        shares = torch.stack(self.ratios).softmax(-1)
        return shares if shares.dim() == 2 else shares.mT.repeat_interleave(channels // shares.shape[1], 2)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All that may need a gradient."""
        return *(self.ratios or (None, None)), self.weight, self.bias, self.center, *(self.gate or (None, None))

    def is_of(self, dtype: torch.dtype) -> bool:
        """Whether all these are of a type."""
        return all(tensor is None or tensor.dtype == dtype for tensor in self.tensors())

    def without_tensors(self) -> 'Blend':
        """The same, of none of :meth:`tensors`, and without renorm."""
        return Blend(
            self.scopes, self.batch, self.groups,
            instances=self.instances, correction=self.correction, gate_eps=self.gate_eps,
        )  # fmt: skip

    def of(self, mean_ratio, var_ratio, weight, bias, center, a, b) -> 'Blend':
        """The same, of other :meth:`tensors`."""
        ratios = None if mean_ratio is None else (mean_ratio, var_ratio)
        gate = None if a is None else (a, b)
        # not by _replace, which takes longer
        return Blend(self.scopes, self.batch, self.groups, ratios, weight, bias, center, gate, *self[-4:])


def blend(x: Tensor, what: Blend, eps: float) -> Tensor:
    """Normalize a tensor by a blend of statistics.

    Args:
        x (Tensor): Floating point, (N, C, *S), with elements. Never modified.
        what (Blend): Its tensors are of the type of statistics: float32, or float64 if x is.
        eps (float): Added to the variance.

    Returns:
        Tensor: With the shape, type and memory format of x.
    """
    tensors = what.tensors()
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *tensors)):
        return like(_Blend.apply(x, what, eps, *tensors), x)
    if what.takes_var:
        return like(_forward(x, what, eps)[0], x)
    m = elements.take_means(x)
    mean, _, scale, bias, *_ = coefficients(m, None, what, 0, eps)
    scale = scale.expand_as(m)
    return like(elements.affine(x, scale, bias - mean * scale), x)


class _Blend(torch.autograd.Function):
    """With sums over the positions, d = sum(g (x - mean)) and r = 1 / sqrt(var + eps), as in plane.py:
        dL/dmean = -weight r sum(g)     dL/dvar = -weight r^3 d / 2     dL/dweight = r d     dL/dbias = sum(g)
    Where a scope pools n values of m and v, to M and V, their gradients give each of them
        dL/dm = (dL/dM + 2 (m - M) dL/dV) / n                           dL/dv = dL/dV / n
    """

    @staticmethod
    def forward(ctx, x, what, eps, *tensors):
        y, saved = _forward(x, what, eps)
        # what is saved for the backward pass is kept there alone
        ctx.what, ctx.eps = what.without_tensors(), eps
        ctx.save_for_backward(x, *tensors, *saved)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, *saved = ctx.saved_tensors  # asked for once: checkpointing gives each tensor once
        number = len(ctx.what.tensors())
        tensors, saved = saved[:number], saved[number:]
        what = ctx.what.of(*tensors)
        if torch.is_grad_enabled():
            r, d = saved[-3:-1]
            return _recorded_backward(x, what if r is None else what._replace(renorm=(r, d)), ctx.eps, grad)
        m, _, _, _, scale = saved[:5]
        total, centered = elements.reduce(grad, x, m)
        needs_ratios = any(ctx.needs_input_grad[3:5])
        dm, dv, *found = coefficient_gradients(total, centered, what, needs_ratios, *saved)
        dx = elements.input_gradient(grad, x, m, scale, dm, dv) if ctx.needs_input_grad[0] else None
        return dx, None, None, *found


def _forward(x, what, eps):
    """y, and what :func:`coefficient_gradients` takes of the way there."""
    moments = elements.take_moments(x)
    m, v = moments[1:3]
    mean, rstd, scale, bias, *found = coefficients(m, v, what, x.numel() // (what.groups or x.shape[1]), eps)
    y = elements.complete(x, moments, mean, scale, bias)
    return y, (m, None if what.ratios is None and what.gate_eps is None else v, mean, rstd, scale, *found)


@or_kernel(module='plane_kernels')
def coefficients(m: Tensor, v: Tensor | None, what: Blend, count: int, eps: float) -> tuple:
    """What to normalize by; tells a batch's statistics to the one who is to be told.

    Args:
        m, v (Tensor): The moments of x, (N, C); v may be None where the blend does not take it.
        what (Blend): The blend.
        count (int): The number of elements behind each of BN's statistics.
        eps (float): Added to the variance.

    Returns:
        tuple[Tensor or None, ...]: Mean, rstd and scale, which broadcast to (N, C), and a bias, (C,) or a number, of
        ``scale * (x - mean) + bias`` with ``rstd = 1 / sqrt(var + eps)``; LN's mean and variance, (N, 1); BN's, (1, C);
        r and d, (C,); and the shares. None is what there is not.
    """
    if v is not None and what.correction != 1:
        v = v * what.correction
    values = _values(what, m, v)
    none = None, None
    renorm: tuple = none
    if BN in values and callable(what.batch):
        mean, var = (plane.view(what.groups or m.shape[1], -1)[:, 0] for plane in values[BN])
        if callable(what.renorm):
            renorm = what.renorm(mean, var, eps)
            what = what._replace(renorm=renorm)
        what.batch(mean, var, count)  # type: ignore[operator]  # it is callable
    shares = what.shares(m.shape[1])
    found = scaled(_coefficients(what, m, v, values, shares, eps), eps, m.dtype)
    return *found, *values.get(LN, none), *values.get(BN, none), *renorm, shares


@or_kernel(x_at=4, module='plane_kernels')
def coefficient_gradients(
    total: Tensor,
    centered: Tensor,
    what: Blend,
    needs_ratios: bool,
    m: Tensor,
    v: Any,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor,
    ln_mean: Any,
    ln_var: Any,
    bn_mean: Any,
    bn_var: Any,
    r: Any,
    d: Any,
    shares: Any,
) -> tuple:
    """The gradients of m and of v, (N, C), and of the blend's tensors, in their order; None of what there is not.

    Args:
        total, centered (Tensor): ``sum(grad)`` and ``sum(grad * (x - m))`` over the positions, (N, C).
        what (Blend): The blend, without its renorm.
        needs_ratios (bool): Whether its ratios need a gradient.
        m, v, ...: The moments, and what :func:`coefficients` found; v may be None without ratios and gate_eps.
    """
    distance = m - mean
    dweight = torch.addcmul(centered, distance, total).mul_(rstd)
    dmean, dvar = (scale * total).neg_(), (scale * dweight).mul_(rstd).mul_(-0.5)
    dgate: tuple[Tensor | None, ...] = (None, None)
    dms, dvs, dcenter = [], [], None
    if what.gate:
        k = distance.mul_(rstd) if what.gate_eps is None else _deviation(v, rstd, what.gate_eps)
        gate = torch.sigmoid(torch.addcmul(what.gate[1], what.gate[0], k))
        dweight.mul_(gate)
        argument = torch.addcmul(dweight, dweight, gate, value=-1)  # the derivative is gate (1 - gate)
        if what.weight is not None:
            argument.mul_(what.weight)
        dgate = (argument * k).sum(0), argument.sum(0)
        dk = argument * what.gate[0]
        if what.gate_eps is None:
            dms.append(dk.mul_(rstd))
            dmean.sub_(dms[0])
            dvar.addcmul_(dms[0] * rstd, k, value=-0.5)
        else:  # half of it goes to v, in proportion to rstd^2, and to var, in proportion to v
            dvs.append((dk * rstd.square()).div_(2 * k))
            dvar.addcmul_(dvs[0] * rstd.square(), v, value=-1)
    if r is not None:
        dweight = dweight.mul_(r).addcmul_(total, d)
    of_scope = {IN: (m, v if what.correction == 1 or v is None else v * what.correction)}
    values = [(of_scope | {LN: (ln_mean, ln_var), BN: (bn_mean, bn_var)})[scope] for scope in what.scopes]
    for i, (scope, value) in enumerate(zip(what.scopes, values)):
        parts = dmean, dvar
        if shares is not None:
            parts = dmean * shares[0, i], dvar * shares[1, i]
        if scope != IN:
            mean_over = what.mean_over(scope)
            if mean_over is None:
                continue
            pooled = [mean_over(part) for part in parts]
            instances = m if scope == LN else _shifted(what, m)
            parts = torch.addcmul(pooled[0], instances - value[0], pooled[1], value=2), pooled[1]
        dms.append(parts[0])
        dvs.append(parts[1])
    if what.center is not None:
        # BN takes off what all samples are shifted by, so that part of m is left out: with it the gradient would be
        # a small difference of sums as large as |mean| / std
        trained = what.mean_over(BN) is not None
        dshift = dms[-1] - dmean if trained else -dmean
        dcenter = ((m - m.mean(0) if trained else m) * dshift).sum(0)
        dms.append(dshift * what.center)
    dm, dv = (sum(parts[1:], parts[0]) if parts else torch.zeros_like(m) for parts in (dms, dvs))
    if what.instances:
        dm, dv = (_with_instances(what, own, plane) for own, plane in ((dmean, dm), (dvar, dv)))
    dv = dv if what.correction == 1 else dv * what.correction
    dratios: tuple[Tensor | None, ...] = (None, None)
    if what.ratios is not None and needs_ratios:
        # shares sum to 1, so that what all scopes have in common counts for nothing; with it the gradients would be
        # small differences of sums as large as |mean| / std
        rows = (dmean, [plane - mean for plane, _ in values]), (dvar, [plane for _, plane in values])
        dims = (0, 1) if shares.dim() == 2 else 0
        dshares = torch.stack([torch.stack([(g * plane).sum(dims) for plane in planes]) for g, planes in rows])
        dratios = _gradient_of_softmax(dshares, shares, what.ratios[0])
    of_affine = (None if p is None else g.sum(0) for p, g in ((what.weight, dweight), (what.bias, total)))
    return dm, dv, *dratios, *of_affine, dcenter, *dgate


def _recorded_backward(x, what, eps, grad):
    """The backward pass of the plain formula, where a graph of the gradient is asked for."""
    x, *tensors = apart((x, *what.tensors()))
    what = what.of(*tensors)

    def coefficients(m, v, _):
        v = v * what.correction
        return _coefficients(what, m, v, _values(what, m, v), what.shares(x.shape[1]), eps)

    dx, *found = gradients(spell_out(x, coefficients, eps), (x, *tensors), grad, create_graph=True)
    return dx, None, None, *found


def _values(what, m, v):
    """Mean and variance of each scope, which broadcast to (N, C)."""
    values = {}
    for scope in what.scopes:
        mean_over = what.mean_over(scope)
        if scope == IN:
            values[scope] = m, v
        elif mean_over is None:
            values[scope] = tuple(plane.unsqueeze(0) for plane in what.batch)
        else:
            instances = m if scope == LN else _shifted(what, m)
            mean = mean_over(instances)
            distance = instances - mean
            values[scope] = mean, mean_over(torch.addcmul(v, distance, distance))
    return values


def _shifted(what, m):
    return m if what.center is None else torch.addcmul(m, what.center, m)


def _with_instances(what, own, plane):
    """The first channels of one plane, and the others of another."""
    return torch.cat([own[:, : what.instances], plane.expand_as(own)[:, what.instances :]], 1)


def _coefficients(what, m, v, values, shares, eps):
    """Mean, variance, weight and bias to normalize by."""
    mean, var = values[what.scopes[-1]]
    if shares is not None:
        mean, var = (_mixed(share, planes) for share, planes in zip(shares, zip(*values.values())))
    if what.instances:
        mean, var = _with_instances(what, m, mean), _with_instances(what, v, var)
    if what.center is not None:
        mean = torch.addcmul(mean, what.center, m, value=-1)
    weight, bias = 1.0 if what.weight is None else what.weight, 0.0 if what.bias is None else what.bias
    if what.renorm is not None:
        weight, bias = weight * what.renorm[0], bias + weight * what.renorm[1]
    if what.gate:
        rstd = torch.rsqrt(var + eps)
        k = (m - mean) * rstd if what.gate_eps is None else _deviation(v, rstd, what.gate_eps)
        weight = weight * torch.sigmoid(torch.addcmul(what.gate[1], what.gate[0], k))
    return mean, var, weight, bias


def _deviation(v, rstd, eps):
    """That of each instance, normalized."""
    return torch.sqrt(v * rstd.square() + eps)


def _mixed(shares, planes):
    """The sum of shares of planes, from the smallest plane to the largest."""
    *rest, (share, plane) = zip(shares, planes)
    total = share * plane
    for share, plane in reversed(rest):
        total = torch.addcmul(total, share, plane)
    return total


def _gradient_of_softmax(dshares, shares, ratio):
    """The gradients of mean's and of variance's ratios, of those of shares, (2, scopes) or (2, scopes, C)."""
    if shares.dim() == 3:
        dshares = dshares.unflatten(2, (len(ratio), -1)).sum(3).mT
        shares = shares[..., :: shares.shape[2] // len(ratio)].mT
    of_each = shares * dshares
    return torch.addcmul(of_each, shares, of_each.sum(-1, keepdim=True), value=-1).unbind()
