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
from .plane import apart, gradients, like, replayed, scaled, spell_out
from .ranks import Peers, add, gather, parts_of
from .scopes import as_pooled, join_ranks

IN, LN, BN = range(3)


class Blend(NamedTuple):
    """What a tensor x (N, C, *S), of moments m and v, is normalized by.

    ``mean = A_IN m + A_LN LN(m) + A_BN BN(m + w m) - w m`` and ``var = B_IN v + B_LN LN(v) + B_BN BN(v)``, where LN and
    BN pool the moments of a sample and of the batch. With ``k = (m - mean) / sqrt(var + eps)`` then
    ``y = weight * (r * sigmoid(a k + b) * (x - mean) / sqrt(var + eps) + d) + bias``.

    Attributes:
        scopes: Which of IN, LN and BN take part.
        batch: What stands for BN's mean and variance, (C,) each; or, in training, a function that is told them, (G,)
            each, the number of elements behind each of them, and that of samples.
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
        peers: The ranks that BN pools over, too, in training. None: this one alone.
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
    peers: Peers | None = None

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
            instances=self.instances, correction=self.correction, gate_eps=self.gate_eps, peers=self.peers,
        )  # fmt: skip

    def of(self, mean_ratio, var_ratio, weight, bias, center, a, b) -> 'Blend':
        """The same, of other :meth:`tensors`."""
        ratios = None if mean_ratio is None else (mean_ratio, var_ratio)
        gate = None if a is None else (a, b)
        # not by _replace, which takes longer
        return Blend(self.scopes, self.batch, self.groups, ratios, weight, bias, center, gate, *self[-5:])


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
    and where ranks pool them, dL/dM and dL/dV are the sums of what each rank has of them.
    """

    @staticmethod
    def forward(ctx, x, what, eps, *tensors):
        y, saved = _forward(x, what, eps)
        # what is saved for the backward pass is kept there alone
        ctx.what, ctx.eps = what.without_tensors(), eps
        ctx.call = what.peers and what.peers.calls
        ctx.save_for_backward(x, *tensors, *saved)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, *saved = ctx.saved_tensors  # asked for once: checkpointing gives each tensor once
        number = len(ctx.what.tensors())
        tensors, saved = saved[:number], saved[number:]
        what = ctx.what.of(*tensors)
        if torch.is_grad_enabled():
            bn_mean, bn_var, r, d, _, part = saved[-6:]
            what = what if r is None else what._replace(renorm=(r, d))
            return _recorded_backward(x, what, ctx.eps, grad, ctx.call, (bn_mean, bn_var, part))
        m, _, _, _, scale = saved[:5]
        total, centered = elements.reduce(grad, x, m)
        needs_ratios = any(ctx.needs_input_grad[3:5])
        added = None if what.peers is None else _add_gradients(total, centered, what, ctx.call, saved)
        dm, dv, *found = coefficient_gradients(total, centered, what, needs_ratios, *(*saved, added))
        dx = elements.input_gradient(grad, x, m, scale, dm, dv) if ctx.needs_input_grad[0] else None
        return dx, None, None, *found


def _forward(x, what, eps):
    """y, and what :func:`coefficient_gradients` takes of the way there."""
    moments = elements.take_moments(x)
    m, v = moments[1:3]
    count = x.numel() // (what.groups or x.shape[1])
    told = None if what.peers is None else _gather_statistics(m, v, what, count)
    mean, rstd, scale, bias, *found = coefficients(m, v, what, count, eps, told)
    y = elements.complete(x, moments, mean, scale, bias)
    return y, (m, None if what.ratios is None and what.gate_eps is None else v, mean, rstd, scale, *found)


def _gather_statistics(m, v, what, count):
    """What each rank tells of its part of BN, which begins with a place that no kernel has to know."""
    place = what.peers.enter(m.dtype)
    own = m.new_empty(2 + 3 * (what.groups or m.shape[1]), dtype=torch.float64)
    tell_statistics(m, v, what, count, place, parts_of(own))
    return gather(own, place, what.peers.group, what.peers)


def _add_gradients(total, centered, what, call, saved):
    """The gradients of BN's mean and variance, (G,) each, summed over the ranks."""
    m, v, mean, rstd, scale, *_, shares, part = saved
    place = what.peers.place_in(call)
    own = m.new_empty(1 + 2 * len(part))
    tell_gradients(total, centered, what, m, v, mean, rstd, scale, shares, place, own.split([1, len(part), len(part)]))
    return add(own, place, what.peers.group, what.peers, call).chunk(2)


@or_kernel(module='plane_kernels')
def tell_statistics(m: Tensor, v: Tensor, what: Blend, count: int, place: int, parts: tuple[Tensor, ...]) -> None:
    """Write what this rank has of BN's statistics into the message to the others.

    Args:
        m, v (Tensor): The moments of x, (N, C).
        what (Blend): The blend.
        count (int): The number of elements behind each of these statistics.
        place (int): That the rank is at.
        parts (tuple[Tensor, ...]): Of the message, :func:`~mmnorm.core.ranks.parts_of`.
    """
    own = _per_group(what, _own_statistics(what, m, v * what.correction))
    for part, value in zip(parts, (place, len(m), *own, count)):
        part.copy_(value) if torch.is_tensor(value) else part.fill_(value)


@or_kernel(x_at=3, module='plane_kernels')
def tell_gradients(
    total: Tensor,
    centered: Tensor,
    what: Blend,
    m: Tensor,
    v: Any,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor,
    shares: Any,
    place: int,
    parts: tuple[Tensor, ...],
) -> None:
    """Write what this rank has of the gradients of BN's mean and variance into the message to the others.

    Args:
        total, centered, what, m, v, ...: As in :func:`coefficient_gradients`.
        place (int): That the rank is at.
        parts (tuple[Tensor, ...]): Of the message: the place, (1,), and both gradients, (G,) each.
    """
    _, *of_values = _gradients(total, centered, what, m, v, mean, rstd, scale)[:3]
    parts[0].fill_(place)
    for part, gradient in zip(parts[1:], _of_scope(what.scopes.index(BN), shares, of_values)):
        part.copy_(gradient.sum(0).view(len(part), -1).sum(1))
        if what.instances:
            part[: what.instances] = 0


@or_kernel(module='plane_kernels')
def coefficients(m: Tensor, v: Tensor | None, what: Blend, count: int, eps: float, told: Tensor | None = None) -> tuple:
    """What to normalize by; tells a batch's statistics to the one who is to be told.

    Args:
        m, v (Tensor): The moments of x, (N, C); v may be None where the blend does not take it.
        what (Blend): The blend.
        count (int): The number of elements behind each of BN's statistics, of this rank.
        eps (float): Added to the variance.
        told (Tensor or None): What the ranks tell each other, (ranks, 2 + 3 G); None of one alone.

    Returns:
        tuple[Tensor or None, ...]: Mean, rstd and scale, which broadcast to (N, C), and a bias, (C,) or a number, of
        ``scale * (x - mean) + bias`` with ``rstd = 1 / sqrt(var + eps)``; LN's mean and variance, (N, 1); BN's, (1, C);
        r and d, (C,); the shares; and of several ranks the part that each value of m and v has in BN's, (G,). None is
        what there is not.
    """
    if v is not None and what.correction != 1:
        v = v * what.correction
    number: Any = count
    samples: Any = len(m)
    of_ranks = part = None
    if told is not None:
        _, samples, *planes = (plane.to(m.dtype) for plane in parts_of(told))
        *of_ranks, number = join_ranks(*planes)
        samples = samples.sum()
        part = count * len(number) / m.numel() / number
        of_ranks = [_per_channel(what, m, plane) for plane in of_ranks]
    values = _values(what, m, v, of_ranks)
    none = None, None
    renorm: tuple = none
    if BN in values and callable(what.batch):
        mean, var = _per_group(what, values[BN])
        if callable(what.renorm):
            renorm = what.renorm(mean, var, eps)
            what = what._replace(renorm=renorm)
        what.batch(mean, var, number, samples=samples)  # type: ignore[operator]  # it is callable
    shares = what.shares(m.shape[1])
    found = scaled(_coefficients(what, m, v, values, shares, eps), eps, m.dtype)
    return *found, *values.get(LN, none), *values.get(BN, none), *renorm, shares, part


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
    part: Any,
    added: Any = None,
) -> tuple:
    """The gradients of m and of v, (N, C), and of the blend's tensors, in their order; None of what there is not.

    Args:
        total, centered (Tensor): ``sum(grad)`` and ``sum(grad * (x - m))`` over the positions, (N, C).
        what (Blend): The blend, without its renorm.
        needs_ratios (bool): Whether its ratios need a gradient.
        m, v, ...: The moments, and what :func:`coefficients` found; v may be None without ratios and gate_eps.
        added (tuple[Tensor, ...] or None): The gradients of BN's mean and variance, (G,) each, summed over the ranks;
            None of one alone.
    """
    dweight, dmean, dvar, dms, dvs, dgate = _gradients(total, centered, what, m, v, mean, rstd, scale)
    dcenter = None
    if r is not None:
        dweight = dweight.mul_(r).addcmul_(total, d)
    of_scope = {IN: (m, v if what.correction == 1 or v is None else v * what.correction)}
    values = [(of_scope | {LN: (ln_mean, ln_var), BN: (bn_mean, bn_var)})[scope] for scope in what.scopes]
    for i, (scope, value) in enumerate(zip(what.scopes, values)):
        parts = _of_scope(i, shares, (dmean, dvar))
        if scope != IN:
            mean_over = what.mean_over(scope)
            if mean_over is None:
                continue
            if scope == BN and added is not None:
                pooled = [_per_channel(what, m, part * plane) for plane in added]
            else:
                pooled = [mean_over(plane) for plane in parts]
            instances = m if scope == LN else _shifted(what, m)
            parts = torch.addcmul(pooled[0], instances - value[0], pooled[1], value=2), pooled[1]
        dms.append(parts[0])
        dvs.append(parts[1])
    if what.center is not None:
        trained = what.mean_over(BN) is not None
        dshift = dms[-1] - dmean if trained else -dmean
        # BN takes off what all samples are shifted by, so that part of m is left out: with it the gradient would be
        # a small difference of sums as large as |mean| / std; of several ranks the others would have to leave out as
        # much, those on other ways too
        dcenter = ((m - m.mean(0) if trained and added is None else m) * dshift).sum(0)
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


def _gradients(total, centered, what, m, v, mean, rstd, scale):
    """The gradients of weight, mean and variance; of m and of v, in lists, and of the gate, of what passes the gate."""
    distance = m - mean
    dweight = torch.addcmul(centered, distance, total).mul_(rstd)
    dmean, dvar = (scale * total).neg_(), (scale * dweight).mul_(rstd).mul_(-0.5)
    dgate: tuple[Tensor | None, ...] = (None, None)
    dms, dvs = [], []
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
    return dweight, dmean, dvar, dms, dvs, dgate


def _of_scope(place, shares, of_values):
    """The gradients of one scope's mean and variance, of those of the mixed ones."""
    return of_values if shares is None else [share[place] * plane for share, plane in zip(shares, of_values)]


def _recorded_backward(x, what, eps, grad, call, of_ranks):
    """The backward pass of the plain formula, where a graph of the gradient is asked for."""
    x, *tensors = apart((x, *what.tensors()))

    def coefficients(m, v, _, *tensors):
        own, v = what.of(*tensors), v * what.correction
        pooled = None if what.peers is None else _as_pooled(own, m, v, call, *of_ranks)
        return _coefficients(own, m, v, _values(own, m, v, pooled), own.shares(x.shape[1]), eps)

    def statistics(m, v, count):
        if what.peers is None:
            return coefficients(m, v, count, *tensors)
        # as `normalize` has it, by which ranks without elements come: all collectives are in a graph of their own,
        # each time in the same order, and all of them take place, whatever needs a gradient
        values = [m, v, *tensors]
        leaves = [value if value is None else value.detach().requires_grad_() for value in values]
        found = coefficients(*leaves[:2], count, *leaves[2:])
        return replayed(found, *([value for value in side if value is not None] for side in (leaves, values)))

    dx, *found = gradients(spell_out(x, statistics, eps), (x, *tensors), grad, create_graph=True)
    return dx, None, None, *found


def _as_pooled(what, m, v, call, bn_mean, bn_var, part):
    """BN's mean and variance, (1, C) each, of all ranks, as functions of this rank's m and v."""
    mean, var = _per_group(what, _own_statistics(what, m, v))
    pooled, pooled_var = _per_group(what, (bn_mean, bn_var))
    exchange = what.peers.group, what.peers, call
    found = as_pooled(mean, var, pooled, pooled_var, part * (m.numel() // len(part)), exchange)
    return [_per_channel(what, m, plane) for plane in found]


def _values(what, m, v, of_ranks=None):
    """Mean and variance of each scope, which broadcast to (N, C); ``of_ranks`` are those of BN over several ranks."""
    values = {}
    for scope in what.scopes:
        if scope == IN:
            values[scope] = m, v
        elif scope == LN:
            values[scope] = _pooled(what.mean_over(LN), m, v)
        elif of_ranks is not None:
            values[scope] = of_ranks
        elif callable(what.batch):
            values[scope] = _own_statistics(what, m, v)
        else:
            values[scope] = tuple(plane.unsqueeze(0) for plane in what.batch)
    return values


def _own_statistics(what, m, v):
    """BN's mean and variance of this rank, (1, C) each."""
    return _pooled(what.mean_over(BN), _shifted(what, m), v)


def _pooled(mean_over, m, v):
    mean = mean_over(m)
    distance = m - mean
    return mean, mean_over(torch.addcmul(v, distance, distance))


def _per_group(what, planes):
    """Of planes that are the same in all channels of a group, (1, C), the value of each group, (G,)."""
    return [plane.view(what.groups or plane.shape[1], -1)[:, 0] for plane in planes]


def _per_channel(what, m, plane):
    """The opposite."""
    return plane.view(1, -1) if what.groups is None else plane.repeat_interleave(m.shape[1] // len(plane)).view(1, -1)


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
