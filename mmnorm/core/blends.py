"""Statistics that are blends of those of an instance, of a sample and of a batch, with their gradient written out.

Most normalizers are of this form. :func:`mmnorm.core.normalize` computes them as well, but has autograd go through the
plane, whose many small nodes are what a layer costs on small feature maps, and launches on a GPU.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from . import elements
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

    def of(self, mean_ratio, var_ratio, weight, bias, center, a, b) -> 'Blend':
        """The same, of other :meth:`tensors`."""
        ratios, gate = (None if pair[0] is None else pair for pair in ((mean_ratio, var_ratio), (a, b)))
        return self._replace(ratios=ratios, weight=weight, bias=bias, center=center, gate=gate)


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
        return like(_Blend.apply(x, what.of(*[None] * len(tensors)), eps, *tensors), x)
    return like(_forward(x, what, eps)[0], x)


class _Blend(torch.autograd.Function):
    """With sums over the positions, d = sum(g (x - mean)) and r = 1 / sqrt(var + eps), as in plane.py:
        dL/dmean = -weight r sum(g)     dL/dvar = -weight r^3 d / 2     dL/dweight = r d     dL/dbias = sum(g)
    Where a scope pools n values of m and v, to M and V, their gradients give each of them
        dL/dm = (dL/dM + 2 (m - M) dL/dV) / n                           dL/dv = dL/dV / n
    """

    @staticmethod
    def forward(ctx, x, what, eps, *tensors):
        ctx.eps = eps
        y, saved, values, renorm = _forward(x, what.of(*tensors), eps)
        ctx.what = what._replace(renorm=None)
        ctx.save_for_backward(x, *saved, *renorm, *tensors, *(plane for value in values for plane in value))
        return y

    @staticmethod
    def backward(ctx, grad):
        x, m, mean, rstd, scale, shares, *saved = ctx.saved_tensors
        renorm, saved = saved[:2], saved[2:]
        number = len(ctx.what.tensors())
        what, values = ctx.what.of(*saved[:number]), list(zip(saved[number::2], saved[number + 1 :: 2]))
        if renorm[0] is not None:
            what = what._replace(renorm=renorm)
        if torch.is_grad_enabled():
            return _recorded_backward(x, what, ctx.eps, grad)
        total, centered = elements.reduce(grad, x, m)
        distance = m - mean
        dweight = torch.addcmul(centered, distance, total).mul_(rstd)
        dmean, dvar = (scale * total).neg_(), (scale * dweight).mul_(rstd).mul_(-0.5)
        dgate: tuple[Tensor | None, ...] = (None, None)
        dms, dvs, dcenter = [], [], None
        if what.gate:
            k = distance.mul_(rstd)
            gate = torch.sigmoid(torch.addcmul(what.gate[1], what.gate[0], k))
            dweight.mul_(gate)
            argument = torch.addcmul(dweight, dweight, gate, value=-1)  # the derivative is gate (1 - gate)
            if what.weight is not None:
                argument.mul_(what.weight)
            dgate = (argument * k).sum(0), argument.sum(0)
            dms.append((argument * what.gate[0]).mul_(rstd))
            dmean.sub_(dms[0])
            dvar.addcmul_(dms[0] * rstd, k, value=-0.5)
        if what.renorm:
            dweight = dweight.mul_(what.renorm[0]).addcmul_(total, what.renorm[1])
        for i, (scope, value) in enumerate(zip(what.scopes, values)):
            parts = dmean, dvar
            if shares is not None:
                parts = tuple(plane * share for plane, share in zip(parts, shares[:, i]))
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
        dx, dratios = None, (None, None)
        if ctx.needs_input_grad[0]:
            dm, dv = (sum(parts[1:], parts[0]) if parts else torch.zeros_like(m) for parts in (dms, dvs))
            if what.instances:
                dm, dv = (_with_instances(what, own, plane) for own, plane in ((dmean, dm), (dvar, dv)))
            dv = dv if what.correction == 1 else dv * what.correction
            dx = elements.input_gradient(grad, x, m, scale, dm, dv)
        if ctx.needs_input_grad[3] or ctx.needs_input_grad[4]:
            # shares sum to 1, so that what all scopes have in common counts for nothing; with it the gradients would be
            # small differences of sums as large as |mean| / std
            rows = (dmean, [plane - mean for plane, _ in values]), (dvar, [plane for _, plane in values])
            dims = (0, 1) if shares.dim() == 2 else 0
            dshares = torch.stack([torch.stack([(d * plane).sum(dims) for plane in planes]) for d, planes in rows])
            dratios = _gradient_of_softmax(dshares, shares, what.ratios[0])
        of_affine = (None if p is None else d.sum(0) for p, d in ((what.weight, dweight), (what.bias, total)))
        return dx, None, None, *dratios, *of_affine, dcenter, *dgate


def _forward(x, what, eps):
    """y; the own means, what it is normalized by, and shares; mean and variance of each scope; and r and d."""
    moments = elements.take_moments(x)
    m, v = moments[1:3]
    if what.correction != 1:
        v = v * what.correction
    values, renorm = _values(what, m, v), (None, None)
    if BN in what.scopes and callable(what.batch):
        groups = what.groups or x.shape[1]
        mean, var = (plane.view(groups, -1)[:, 0] for plane in values[what.scopes.index(BN)])
        if what.renorm is not None:
            renorm = what.renorm(mean, var, eps)
            what = what._replace(renorm=renorm)
        what.batch(mean, var, x.numel() // groups)
    shares = what.shares(x.shape[1])
    mean, rstd, scale, bias = scaled(_coefficients(what, m, v, values, shares, eps), eps, m.dtype)
    return elements.complete(x, moments, mean, scale, bias), (m, mean, rstd, scale, shares), values, renorm


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
    values = []
    for scope in what.scopes:
        mean_over = what.mean_over(scope)
        if scope == IN:
            values.append((m, v))
        elif mean_over is None:
            values.append(tuple(plane.unsqueeze(0) for plane in what.batch))
        else:
            instances = m if scope == LN else _shifted(what, m)
            mean = mean_over(instances)
            distance = instances - mean
            values.append((mean, mean_over(torch.addcmul(v, distance, distance))))
    return values


def _shifted(what, m):
    return m if what.center is None else torch.addcmul(m, what.center, m)


def _with_instances(what, own, plane):
    """The first channels of one plane, and the others of another."""
    return torch.cat([own[:, : what.instances], plane.expand_as(own)[:, what.instances :]], 1)


def _coefficients(what, m, v, values, shares, eps):
    """Mean, variance, weight and bias to normalize by."""
    mean, var = values[-1]
    if shares is not None:
        mean, var = (_mixed(share, planes) for share, planes in zip(shares, zip(*values)))
    if what.instances:
        mean, var = _with_instances(what, m, mean), _with_instances(what, v, var)
    if what.center is not None:
        mean = torch.addcmul(mean, what.center, m, value=-1)
    weight, bias = 1.0 if what.weight is None else what.weight, 0.0 if what.bias is None else what.bias
    if what.renorm is not None:
        weight, bias = weight * what.renorm[0], bias + weight * what.renorm[1]
    if what.gate:
        k = (m - mean) * torch.rsqrt(var + eps)
        weight = weight * torch.sigmoid(torch.addcmul(what.gate[1], what.gate[0], k))
    return mean, var, weight, bias


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
