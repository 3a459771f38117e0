"""A blend's work on the moment plane as Triton kernels, two forward and two backward.

The equations, and the names in them, are those of :mod:`mmnorm.core.blends`. In either direction one kernel sums over
the channels of a sample, or of each group of them, where there is something to sum; then one has blocks of channels
with all samples: it sums over these, and computes all else. Planes are float32 and contiguous. Where ranks pool BN's
part, one kernel more writes what this rank tells the others, and the next one reads what all have told.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import kernels
from .blends import BN, IN, LN, Blend
from .kernels import jit
from .ranks import parts_of
from .tracking import Renorm, Running

_SAMPLES, _CHANNELS = 64, 8  # of a tile: 8 neighbors are what a card reads at least
_ROW = 512  # channels of a tile that has one sample
# Whole numbers that are exact in float64 alone reach a kernel as two of 32 bits
_LOW = tl.constexpr(2**24)


class Parts(NamedTuple):
    """What is compiled by itself: which of its parts a blend has.

    ``scopes``: whether IN, LN and BN take part. ``pooled``: BN's part is that of the batch. ``tracked``: its running
    statistics are such that a kernel can move them on; others are told what it finds. ``absent``: of all other parts.
    """

    scopes: tuple[bool, bool, bool]
    pooled: bool
    tracked: bool
    absent: tuple[bool, ...]


def variant(m: Tensor, args: tuple) -> Parts | None:
    """The parts of a blend; None where the kernels are not for such a one."""
    what: Blend = args[2]
    scopes, groups, ratios, renorm, batch = what.scopes, what.groups, what.ratios, what.renorm, what.batch
    pooled = BN in scopes and callable(batch)
    if m.numel() > kernels.LARGEST_AXIS:
        return None
    if ratios is not None and ratios[0].dim() > 1:
        return None
    if groups is not None and (len(scopes) > 1 or what.center is not None or what.correction != 1):
        return None
    if renorm is not None and not (_is_plain(renorm, Renorm) and pooled and groups is None):
        return None
    tracked: Any = pooled and _is_plain(batch, Running) and batch.momentum is not None  # type: ignore[union-attr]
    counts = batch.batches if tracked else None, renorm and renorm.batches  # type: ignore[union-attr]
    absent = [
        part is None or part is False for part in (*what.tensors(), groups, renorm, what.gate_eps, *counts, *args)
    ]
    return Parts((IN in scopes, LN in scopes, BN in scopes), pooled, tracked, tuple(absent))


def coefficients(
    parts: Parts, m: Tensor, v: Tensor | None, what: Blend, count: int, eps: float, told: Tensor | None = None
) -> tuple:
    """What to normalize by; see :func:`mmnorm.core.blends.coefficients`. Planes are (N, C) here."""
    samples, channels = m.shape
    groups, width = (channels, 1) if what.groups is None else (what.groups, channels // what.groups)
    pooled, tracked = parts.pooled, parts.tracked
    batch: Any = what.batch
    renorm: Any = what.renorm or (None, None, None, 0, 0, 0.0, 0.0)
    tensors = m, v, *what.tensors(), *renorm[:3], *(batch[:3] if tracked else (None, None, None))
    kernels.check_devices(m, tensors)
    m, v, *inputs, mean_buffer, var_buffer, batches = _contiguous(tensors)
    ln: Any = (None, None)
    bn: Any = (None, None)
    corrected: Any = (None, None, None)
    grouped, uncounted = (m, v), batches
    if LN in what.scopes or (pooled and what.groups is not None and told is None):
        rows, columns = (samples, channels) if LN in what.scopes else (samples * groups, width)
        sums, uncounted = _pool_channels(parts, m, v, batches, rows, columns, what.correction), None
        ln, grouped = (sums, grouped) if LN in what.scopes else (ln, sums)
    if pooled:
        bn = m.new_empty(1, channels), m.new_empty(1, channels)
    elif BN in what.scopes:
        kernels.check_devices(m, batch)
        bn = [plane.unsqueeze(0) for plane in _contiguous(batch)]
    if what.renorm is not None:
        # counted at the end, since each program looks at the count
        corrected, uncounted = [m.new_empty(channels) for _ in range(3)], None
    shares = None if what.ratios is None else m.new_empty(2, len(what.scopes))
    part, ranks = (None, 0) if told is None else (m.new_empty(groups), len(told))
    mean, rstd, scale = torch.empty_like(m), torch.empty_like(m), torch.empty_like(m)
    kernels.launch(
        _blend, m, (*parts.scopes, pooled, _SAMPLES, _CHANNELS), kernels.divided(channels, _CHANNELS),
        m, v, *inputs, mean_buffer, var_buffer, uncounted, *grouped, told, *ln, *bn, shares, part, mean, rstd, scale,
        *corrected, samples, channels, width, ranks, float(count), count * groups / m.numel(), what.instances, eps,
        what.correction, what.gate_eps, *((batch.momentum, float(batch.bessel)) if tracked else (0.0, 0.0)),
        *renorm[3:], given=parts,
    )  # fmt: skip
    if what.renorm is not None and batches is not None:
        batches.add_(1)
    if pooled and not tracked:
        behind: Any = count, samples
        if told is not None:
            _, of_ranks, *_, counts = parts_of(told)
            behind = counts.sum(0), of_ranks.sum()
        batch(*(plane.view(groups, width)[:, 0] for plane in bn), behind[0], samples=behind[1])
    r, d, bias = corrected
    if what.renorm is None:
        bias = 0.0 if what.bias is None else what.bias
    return mean, rstd, scale, bias, *ln, *bn, r, d, shares, part


def tell_statistics(
    parts: Parts, m: Tensor, v: Tensor, what: Blend, count: int, place: int, told: tuple[Tensor, ...]
) -> None:
    """What this rank tells of BN's statistics; see :func:`mmnorm.core.blends.tell_statistics`."""
    samples, channels = m.shape
    groups = what.groups or channels
    kernels.check_devices(m, (v, what.center))
    m, v, center = _contiguous((m, v, what.center))
    correction = what.correction
    if what.groups is not None:
        m, v = _pool_channels(parts, m, v, None, samples * groups, channels // groups, correction)
        correction = 1.0
    kernels.launch(
        _tell_statistics, m, (_SAMPLES, _CHANNELS), kernels.divided(groups, _CHANNELS),
        m, v, center, *told, samples, groups, *divmod(count, _LOW.value), *divmod(place, _LOW.value), correction,
        given=parts,
    )  # fmt: skip


def tell_gradients(
    parts: Parts, total: Tensor, centered: Tensor, what: Blend, m: Tensor, v: Tensor | None, mean: Tensor,
    rstd: Tensor, scale: Tensor, shares: Any, place: int, told: tuple[Tensor, ...],
) -> None:  # fmt: skip
    """What this rank tells of the gradients of BN's; see :func:`mmnorm.core.blends.tell_gradients`."""
    samples, channels = m.shape
    groups = what.groups or channels
    prepared, (weight, _, _, *gate) = _prepared(total, centered, m, mean, rstd, scale, v, what)
    sums: Any = (None, None)
    if what.groups is not None:
        sums = m.new_empty(samples * groups), m.new_empty(samples * groups)
        kernels.launch(
            _gradients_over_channels, m, (*parts.scopes, _ROW), samples * groups,
            *prepared, weight, *gate, None, None, None, None, *sums, None,
            samples, channels, channels // groups, what.correction, given=parts,
        )  # fmt: skip
    kernels.launch(
        _tell_gradients, m, (*parts.scopes, _SAMPLES, _CHANNELS), kernels.divided(groups, _CHANNELS),
        *prepared, weight, *gate, shares, *sums, *told, samples, groups, channels // groups, what.instances,
        what.gate_eps, place, given=parts,
    )  # fmt: skip


def coefficient_gradients(
    parts: Parts, total: Tensor, centered: Tensor, what: Blend, needs_ratios: bool, m: Tensor, v: Tensor | None,
    mean: Tensor, rstd: Tensor, scale: Tensor, ln_mean: Any, ln_var: Any, bn_mean: Any, bn_var: Any, r: Any, d: Any,
    shares: Any, part: Any, added: Any = None,
) -> tuple:  # fmt: skip
    """The gradients of the moments and of a blend's tensors; see :func:`mmnorm.core.blends.coefficient_gradients`."""
    samples, channels = m.shape
    groups, width = (1, channels) if what.groups is None else (what.groups, channels // what.groups)
    grouped = parts.pooled and what.groups is not None and added is None
    prepared, vectors = _prepared(total, centered, m, mean, rstd, scale, v, what)
    weight, _, center, *gate = vectors
    sums: Any = (None, None)
    dratios: Any = (None, None)
    dshares = None
    if LN in what.scopes or grouped or needs_ratios:
        sums = m.new_empty(samples * groups), m.new_empty(samples * groups)
        if needs_ratios and what.ratios:
            dshares, dratios = m.new_empty(2, len(what.scopes), samples), [torch.empty_like(t) for t in what.ratios]
        kernels.launch(
            _gradients_over_channels, m, (*parts.scopes, _ROW), samples * groups,
            *prepared, weight, *gate, ln_mean, ln_var, bn_mean, bn_var, *sums, dshares,
            samples, channels, width, what.correction, given=parts,
        )  # fmt: skip
    dm, dv = torch.empty_like(prepared[0]), torch.empty_like(prepared[0])
    dvectors = [None if vector is None else torch.empty_like(vector) for vector in vectors]
    kernels.launch(
        _gradients, m, (*parts.scopes, parts.pooled, grouped, _SAMPLES, _CHANNELS),
        kernels.divided(channels, _CHANNELS),
        *prepared, weight, center, *gate, ln_mean, bn_mean, r, d, shares, part, *(added or (None, None)), *sums,
        dshares, dm, dv, *dvectors, *dratios, samples, channels, 1 if what.groups is None else width,
        what.instances, what.correction, what.gate_eps, given=parts,
    )  # fmt: skip
    return dm, dv, *dratios, *dvectors


def _pool_channels(parts, m, v, batches, rows, columns, correction):
    """Mean and variance of rows of so many channels, (rows, 1) each; the number of batches counts on."""
    sums = m.new_empty(rows, 1), m.new_empty(rows, 1)
    kernels.launch(_over_channels, m, (_ROW,), rows, m, v, batches, *sums, columns, correction, given=parts)
    return sums


def _prepared(total, centered, m, mean, rstd, scale, v, what):
    """As the kernels of gradients read them: the planes, and what each channel has."""
    # of ATen they may be of fewer samples
    mean, rstd, scale = (plane if plane.shape == m.shape else plane.expand_as(m) for plane in (mean, rstd, scale))
    prepared = _contiguous((total, centered, m, mean, rstd, scale, v, *what.tensors()[2:]))
    return prepared[:7], prepared[7:]


def _is_plain(buffers: Any, kind: type) -> bool:
    """Whether it is of a kind, and a kernel can read and write its mean and variance and its number of batches."""
    if not isinstance(buffers, kind):
        return False
    mean, var, batches = buffers[:3]  # type: ignore[index]
    return (
        mean.dtype == var.dtype == torch.float32
        and mean.is_contiguous()
        and var.is_contiguous()
        and (batches is None or batches.dtype == torch.int64)
    )


def _contiguous(tensors: Iterable[Any]) -> list:
    """As the kernels read them, which see no strides."""
    return [t if t is None or t.is_contiguous() else t.contiguous() for t in tensors]


@triton.jit
def _softmax(ratios, SCOPES: tl.constexpr):
    """The shares of up to 4 scopes."""
    k = tl.arange(0, 4)
    ratio = tl.load(ratios + k, k < SCOPES, other=float('-inf'))
    share = tl.exp(ratio - tl.max(ratio, 0))
    return share / tl.sum(share, 0)


@triton.jit
def _share(shares, k: tl.constexpr):
    """One of them."""
    return tl.sum(tl.where(tl.arange(0, 4) == k, shares, 0.0), 0)


@triton.jit
def _tile(start, samples, channel, channels, columns, column, SAMPLES: tl.constexpr):
    """The samples of a tile, which of its elements exist, and where they are in a plane of so many columns."""
    sample = start + tl.arange(0, SAMPLES)
    exists = (sample < samples)[:, None] & (channel < channels)[None, :]
    return sample, exists, sample.to(tl.int64)[:, None] * columns + column[None, :]


@triton.jit
def _at(channels, channel, exists):
    """What each channel has, for all samples of a tile."""
    return tl.load(channels + channel, exists, other=0.0)[None, :]


@triton.jit
def _shifted(means, exists, center, channel, column_exists):
    """What BN pools of a tile: means, as they are centered."""
    own = tl.load(means, exists, other=0.0)
    if center is not None:
        own += _at(center, channel, column_exists) * own
    return own


@triton.jit
def _over_samples(
    m, v, center, samples, channel, channels, columns, column, correction,
    SAMPLES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Mean and variance of a block of channels over all samples, of a plane of so many columns."""
    column_exists = channel < channels
    total = tl.zeros([SAMPLES, CHANNELS], tl.float32)
    for start in range(0, samples, SAMPLES):
        _, exists, at = _tile(start, samples, channel, channels, columns, column, SAMPLES)
        total += _shifted(m + at, exists, center, channel, column_exists)
    mean = tl.sum(total, 0) / samples
    total = tl.zeros([SAMPLES, CHANNELS], tl.float32)
    for start in range(0, samples, SAMPLES):
        _, exists, at = _tile(start, samples, channel, channels, columns, column, SAMPLES)
        distance = _shifted(m + at, exists, center, channel, column_exists) - mean[None, :]
        own_var = tl.load(v + at, exists, other=0.0) * correction
        total += tl.where(exists, own_var + distance * distance, 0.0)
    return mean, tl.sum(total, 0) / samples


@triton.jit
def _over_ranks(
    told, ranks, channel, channels, groups, group, SAMPLES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Mean, variance and number of elements of a block of channels, of what ranks tell of groups, by Chan's formula."""
    means, stride = told + 2, 2 + 3 * groups
    variances, counts = means + groups, means + 2 * groups
    elements = tl.zeros([SAMPLES, CHANNELS], tl.float32)
    total = tl.zeros([SAMPLES, CHANNELS], tl.float32)
    for start in range(0, ranks, SAMPLES):
        _, exists, at = _tile(start, ranks, channel, channels, stride, group, SAMPLES)
        count = tl.load(counts + at, exists, other=0.0).to(tl.float32)
        elements += count
        total += count * tl.load(means + at, exists, other=0.0).to(tl.float32)
    found = tl.where(channel < channels, tl.sum(elements, 0), 1.0)
    number = tl.maximum(found, 1.0)
    mean = tl.sum(total, 0) / number
    total = tl.zeros([SAMPLES, CHANNELS], tl.float32)
    for start in range(0, ranks, SAMPLES):
        _, exists, at = _tile(start, ranks, channel, channels, stride, group, SAMPLES)
        count = tl.load(counts + at, exists, other=0.0).to(tl.float32)
        distance = tl.load(means + at, exists, other=0.0).to(tl.float32) - mean[None, :]
        total += count * (tl.load(variances + at, exists, other=0.0).to(tl.float32) + distance * distance)
    return mean, tl.sum(total, 0) / number, found


@jit
def _tell_statistics(
    m, v, center, place, number, mean, var, count, samples, groups, count_high, count_low, place_high, place_low,
    correction, SAMPLES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """BN's mean and variance of a block of groups over this rank's samples, in float64."""
    group = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    own_mean, own_var = _over_samples(
        m, v, center, samples, group, groups, groups, group, correction, SAMPLES, CHANNELS
    )
    tl.store(mean + group, own_mean.to(tl.float64), group < groups)
    tl.store(var + group, own_var.to(tl.float64), group < groups)
    zeros = tl.zeros([CHANNELS], tl.float64)
    tl.store(count + group, zeros + count_high.to(tl.float64) * _LOW + count_low, group < groups)
    if tl.program_id(0) == 0:
        tl.store(place, place_high.to(tl.float64) * _LOW + place_low)
        tl.store(number, samples.to(tl.float64))


@jit
def _over_channels(m, v, batches, mean, var, width, correction, COLUMNS: tl.constexpr):
    """Mean and variance of so many channels that follow each other; the number of batches counts on."""
    program, columns = tl.program_id(0), tl.arange(0, COLUMNS)
    at = program.to(tl.int64) * width
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, width, COLUMNS):
        total += tl.load(m + at + start + columns, start + columns < width, other=0.0)
    pooled = tl.sum(total, 0) / width
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, width, COLUMNS):
        exists = start + columns < width
        distance = tl.load(m + at + start + columns, exists, other=0.0) - pooled
        own = tl.load(v + at + start + columns, exists, other=0.0) * correction
        total += tl.where(exists, own + distance * distance, 0.0)
    tl.store(mean + program, pooled)
    tl.store(var + program, tl.sum(total, 0) / width)
    if batches is not None:  # noqa: SIM102
        if program == 0:
            tl.store(batches, tl.load(batches) + 1)


@jit
def _blend(
    m, v, mean_ratios, var_ratios, weight, bias, center, gate_weight, gate_bias,
    renorm_mean, renorm_var, renorm_batches, running_mean, running_var, running_batches,
    grouped_m, grouped_v, told, ln_mean, ln_var, bn_mean, bn_var, shares, part, mean, rstd, scale, r, d, shift,
    samples, channels, width, ranks, count, length, instances, eps, correction, gate_eps, momentum, bessel,
    warmup, since, r_max, d_max,
    IN: tl.constexpr, LN: tl.constexpr, BN: tl.constexpr, POOLED: tl.constexpr,
    SAMPLES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Mean, rstd and scale of a block of channels, and BN's part of it, which running statistics follow."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    column_exists = channel < channels
    elements = tl.zeros([CHANNELS], tl.float32) + count
    if POOLED:
        columns, column = channels // width, channel // width
        if told is not None:
            pooled_mean, pooled_var, elements = _over_ranks(
                told, ranks, channel, channels, columns, column, SAMPLES, CHANNELS
            )
            tl.store(part + column, length / elements, column_exists & (channel % width == 0))
        else:
            pooled_mean, pooled_var = _over_samples(
                grouped_m, grouped_v, center, samples, channel, channels, columns, column, correction, SAMPLES, CHANNELS
            )
        tl.store(bn_mean + channel, pooled_mean, column_exists)
        tl.store(bn_var + channel, pooled_var, column_exists)
    elif BN:
        pooled_mean = tl.load(bn_mean + channel, column_exists, other=0.0)
        pooled_var = tl.load(bn_var + channel, column_exists, other=0.0)
    factor = tl.full([CHANNELS], 1.0, tl.float32)
    if weight is not None:
        factor = tl.load(weight + channel, column_exists, other=0.0)
    if renorm_mean is not None:
        progress = tl.full([CHANNELS], 1.0, tl.float32)
        if renorm_batches is not None:
            batches = tl.load(renorm_batches)
            if warmup > 0:
                progress = tl.minimum(progress, batches.to(tl.float32) / warmup)
            if since > 0:
                progress = tl.where(batches > since, progress, 0.0)
        most, furthest = 1 + progress * (r_max - 1), progress * d_max
        held_mean = tl.load(renorm_mean + channel, column_exists, other=0.0)
        held_std = tl.sqrt(tl.load(renorm_var + channel, column_exists, other=1.0) + eps)
        ratio = tl.minimum(tl.maximum(tl.sqrt(pooled_var + eps) / held_std, 1 / most), most)
        offset = tl.minimum(tl.maximum((pooled_mean - held_mean) / held_std, -furthest), furthest)
        tl.store(r + channel, ratio, column_exists)
        tl.store(d + channel, offset, column_exists)
        moved = factor * offset
        if bias is not None:
            moved += tl.load(bias + channel, column_exists, other=0.0)
        tl.store(shift + channel, moved, column_exists)
        factor *= ratio
        tl.debug_barrier()  # no thread is to read what another has moved on
    if running_mean is not None:
        first = column_exists & (channel % width == 0)
        held = tl.load(running_mean + channel // width, first, other=0.0)
        tl.store(running_mean + channel // width, held + momentum * (pooled_mean - held), first)
        held = tl.load(running_var + channel // width, first, other=0.0)
        unbiased = pooled_var * (elements / tl.maximum(elements - bessel, 1.0))
        tl.store(running_var + channel // width, held + momentum * (unbiased - held), first)
    if running_batches is not None:  # noqa: SIM102
        if tl.program_id(0) == 0:  # not `and`: only the compiler's constants decide what there is
            tl.store(running_batches, tl.load(running_batches) + 1)
    if mean_ratios is not None:
        k = tl.arange(0, 4)
        of_mean, of_var = _softmax(mean_ratios, IN + LN + BN), _softmax(var_ratios, IN + LN + BN)
        if tl.program_id(0) == 0:
            tl.store(shares + k, of_mean, k < IN + LN + BN)
            tl.store(shares + IN + LN + BN + k, of_var, k < IN + LN + BN)
    for start in range(0, samples, SAMPLES):
        sample, exists, at = _tile(start, samples, channel, channels, channels, channel, SAMPLES)
        own = tl.load(m + at, exists, other=0.0)
        own_var = 0.0 * own
        if v is not None:
            own_var = tl.load(v + at, exists, other=0.0) * correction
        mu = tl.zeros([SAMPLES, CHANNELS], tl.float32)
        var = tl.zeros([SAMPLES, CHANNELS], tl.float32)
        if BN:
            a, b = 1.0, 1.0
            if mean_ratios is not None:
                a, b = _share(of_mean, IN + LN), _share(of_var, IN + LN)
            mu += a * pooled_mean[None, :]
            var += b * pooled_var[None, :]
        if LN:
            a, b = 1.0, 1.0
            if mean_ratios is not None:
                a, b = _share(of_mean, IN), _share(of_var, IN)
            mu += a * tl.load(ln_mean + sample, sample < samples, other=0.0)[:, None]
            var += b * tl.load(ln_var + sample, sample < samples, other=0.0)[:, None]
        if IN:
            a, b = 1.0, 1.0
            if mean_ratios is not None:
                a, b = _share(of_mean, 0), _share(of_var, 0)
            mu += a * own
            var += b * own_var
        is_instance = channel[None, :] < instances
        mu, var = tl.where(is_instance, own, mu), tl.where(is_instance, own_var, var)
        if center is not None:
            mu -= _at(center, channel, column_exists) * own
        inverse = tl.rsqrt(var + eps)
        gated = inverse * factor[None, :]
        if gate_weight is not None:
            a, b = _at(gate_weight, channel, column_exists), _at(gate_bias, channel, column_exists)
            k = (own - mu) * inverse
            if gate_eps is not None:
                k = tl.sqrt(own_var * inverse * inverse + gate_eps)
            gated *= tl.sigmoid(b + a * k)
        tl.store(mean + at, mu, exists)
        tl.store(rstd + at, inverse, exists)
        tl.store(scale + at, gated, exists)


@triton.jit
def _gradients_at(
    at, channel, exists, total, centered, m, mean, rstd, scale, v, weight, gate_weight, gate_bias, gate_eps,
):  # fmt: skip
    """Of some elements of the plane: the gradients of weight, mean and variance; m, k; and those that pass the gate.

    They are those of its argument and, by that, of m and of v.
    """
    t, own = tl.load(total + at, exists, other=0.0), tl.load(m + at, exists, other=0.0)
    inverse, s = tl.load(rstd + at, exists, other=0.0), tl.load(scale + at, exists, other=0.0)
    distance = own - tl.load(mean + at, exists, other=0.0)
    dweight = (tl.load(centered + at, exists, other=0.0) + distance * t) * inverse
    dmean, dvar, k = -s * t, -0.5 * s * dweight * inverse, distance * inverse
    argument, of_m, of_v = 0.0 * k, 0.0 * k, 0.0 * k
    if gate_weight is not None:
        a, b = tl.load(gate_weight + channel, exists, other=0.0), tl.load(gate_bias + channel, exists, other=0.0)
        if gate_eps is not None:
            own_var = tl.load(v + at, exists, other=0.0)
            k = tl.sqrt(own_var * inverse * inverse + gate_eps)
        gate = tl.sigmoid(b + a * k)
        dweight *= gate
        argument = dweight * (1 - gate)
        if weight is not None:
            argument *= tl.load(weight + channel, exists, other=0.0)
        if gate_eps is not None:
            of_v = 0.5 * argument * a * inverse * inverse / k
            dvar -= of_v * inverse * inverse * own_var
        else:
            of_m = argument * a * inverse
            dmean -= of_m
            dvar -= 0.5 * of_m * inverse * k
    return t, own, distance, dweight, dmean, dvar, k, argument, of_m, of_v


@jit
def _gradients_over_channels(
    total, centered, m, mean, rstd, scale, v, weight, gate_weight, gate_bias, ln_mean, ln_var, bn_mean, bn_var,
    dmeans, dvars, dshares, samples, channels, width, correction,
    IN: tl.constexpr, LN: tl.constexpr, BN: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Means of the gradients of mean and variance over so many channels; and a sample's part of those of the shares."""
    program, columns = tl.program_id(0), tl.arange(0, COLUMNS)
    row = program.to(tl.int64) * width
    sum_mean, sum_var = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
    if dshares is not None:
        mean_in, mean_ln, mean_bn = 0.0 * sum_mean, 0.0 * sum_mean, 0.0 * sum_mean
        var_in, var_ln, var_bn = 0.0 * sum_mean, 0.0 * sum_mean, 0.0 * sum_mean
    for start in range(0, width, COLUMNS):
        exists = start + columns < width
        channel = (row + start + columns) % channels
        _, _, distance, _, dmean, dvar, _, _, _, _ = _gradients_at(
            row + start + columns, channel, exists, total, centered, m, mean, rstd, scale, v, weight, gate_weight,
            gate_bias, None,
        )  # fmt: skip
        sum_mean += dmean
        sum_var += dvar
        if dshares is not None:
            mu = tl.load(mean + row + start + columns, exists, other=0.0)
            if IN:
                mean_in += dmean * distance
                var_in += dvar * tl.load(v + row + start + columns, exists, other=0.0) * correction
            if LN:
                mean_ln += dmean * (tl.load(ln_mean + program) - mu)
                var_ln += dvar * tl.load(ln_var + program)
            if BN:
                mean_bn += dmean * (tl.load(bn_mean + channel, exists, other=0.0) - mu)
                var_bn += dvar * tl.load(bn_var + channel, exists, other=0.0)
    tl.store(dmeans + program, tl.sum(sum_mean, 0) / width)
    tl.store(dvars + program, tl.sum(sum_var, 0) / width)
    if dshares is not None:
        of_mean, of_var = dshares + program, dshares + (IN + LN + BN) * samples + program
        if IN:
            tl.store(of_mean, tl.sum(mean_in, 0))
            tl.store(of_var, tl.sum(var_in, 0))
        if LN:
            tl.store(of_mean + IN * samples, tl.sum(mean_ln, 0))
            tl.store(of_var + IN * samples, tl.sum(var_ln, 0))
        if BN:
            tl.store(of_mean + (IN + LN) * samples, tl.sum(mean_bn, 0))
            tl.store(of_var + (IN + LN) * samples, tl.sum(var_bn, 0))


@jit
def _tell_gradients(
    total, centered, m, mean, rstd, scale, v, weight, gate_weight, gate_bias, shares, dmeans, dvars,
    place, dmean_told, dvar_told, samples, groups, width, instances, gate_eps, own_place,
    IN: tl.constexpr, LN: tl.constexpr, BN: tl.constexpr, SAMPLES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradients of BN's mean and variance of a block of groups, summed over this rank's samples."""
    group = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    sum_mean, sum_var = tl.zeros([SAMPLES, CHANNELS], tl.float32), tl.zeros([SAMPLES, CHANNELS], tl.float32)
    for start in range(0, samples, SAMPLES):
        _, exists, at = _tile(start, samples, group, groups, groups, group, SAMPLES)
        if dmeans is not None:  # means over a group
            dmean, dvar = (
                tl.load(dmeans + at, exists, other=0.0) * width,
                tl.load(dvars + at, exists, other=0.0) * width,
            )
        else:
            _, _, _, _, dmean, dvar, _, _, _, _ = _gradients_at(
                at, group[None, :], exists, total, centered, m, mean, rstd, scale, v, weight, gate_weight, gate_bias,
                gate_eps,
            )  # fmt: skip
        sum_mean += dmean
        sum_var += dvar
    a, b = 1.0, 1.0
    if shares is not None:
        a, b = tl.load(shares + IN + LN), tl.load(shares + IN + LN + BN + IN + LN)
    is_pooled = group >= instances
    tl.store(dmean_told + group, tl.where(is_pooled, a * tl.sum(sum_mean, 0), 0.0), group < groups)
    tl.store(dvar_told + group, tl.where(is_pooled, b * tl.sum(sum_var, 0), 0.0), group < groups)
    if tl.program_id(0) == 0:
        tl.store(place, own_place.to(tl.float32))


@triton.jit
def _gradient_of_softmax(dshares, shares, dratios, samples, SCOPES: tl.constexpr, SAMPLES: tl.constexpr):
    """From each sample's part of the gradients of the shares."""
    k = tl.arange(0, 4)
    sums = tl.zeros([SAMPLES, 4], tl.float32)
    for start in range(0, samples, SAMPLES):
        sample = start + tl.arange(0, SAMPLES)
        exists = (sample < samples)[:, None] & (k < SCOPES)[None, :]
        sums += tl.load(dshares + k[None, :] * samples + sample[:, None], exists, other=0.0)
    share = tl.load(shares + k, k < SCOPES, other=0.0)
    product = share * tl.sum(sums, 0)
    tl.store(dratios + k, product - share * tl.sum(product, 0), k < SCOPES)


@jit
def _gradients(
    total, centered, m, mean, rstd, scale, v, weight, center, gate_weight, gate_bias, ln_mean, bn_mean, r, d, shares,
    part, added_mean, added_var, dmeans, dvars, dshares, dm, dv, dweight, dbias, dcenter, dgate_weight, dgate_bias,
    dmean_ratios, dvar_ratios,
    samples, channels, width, instances, correction, gate_eps,
    IN: tl.constexpr, LN: tl.constexpr, BN: tl.constexpr, POOLED: tl.constexpr, GROUPED: tl.constexpr,
    SAMPLES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradients of m and v of a block of channels, and of what each channel has; those of the ratios."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    column_exists = channel < channels
    sum_weight, sum_bias = tl.zeros([SAMPLES, CHANNELS], tl.float32), tl.zeros([SAMPLES, CHANNELS], tl.float32)
    sum_product, sum_argument = 0.0 * sum_bias, 0.0 * sum_bias
    sum_mean, sum_var, sum_own = 0.0 * sum_bias, 0.0 * sum_bias, 0.0 * sum_bias
    for start in range(0, samples, SAMPLES):
        _, exists, at = _tile(start, samples, channel, channels, channels, channel, SAMPLES)
        t, own, _, of_weight, dmean, dvar, k, argument, _, _ = _gradients_at(
            at, channel[None, :], exists, total, centered, m, mean, rstd, scale, v, weight, gate_weight, gate_bias,
            gate_eps,
        )  # fmt: skip
        sum_weight += of_weight
        sum_bias += t
        sum_product += argument * k
        sum_argument += argument
        if GROUPED:
            _, _, at = _tile(start, samples, channel, channels, channels // width, channel // width, SAMPLES)
            dmean, dvar = tl.load(dmeans + at, exists, other=0.0), tl.load(dvars + at, exists, other=0.0)
        sum_mean += dmean
        sum_var += dvar
        if added_mean is None:
            sum_own += own
    dgamma, dbeta = tl.sum(sum_weight, 0), tl.sum(sum_bias, 0)
    if r is not None:
        dgamma *= tl.load(r + channel, column_exists, other=0.0)
        dgamma += tl.load(d + channel, column_exists, other=0.0) * dbeta
    if dweight is not None:
        tl.store(dweight + channel, dgamma, column_exists)
    if dbias is not None:
        tl.store(dbias + channel, dbeta, column_exists)
    if gate_weight is not None:
        tl.store(dgate_weight + channel, tl.sum(sum_product, 0), column_exists)
        tl.store(dgate_bias + channel, tl.sum(sum_argument, 0), column_exists)
    pooled_mean, pooled_var = (tl.sum(sum_mean, 0) / samples)[None, :], (tl.sum(sum_var, 0) / samples)[None, :]
    own_mean = (tl.sum(sum_own, 0) / samples)[None, :]
    if added_mean is not None:
        of_each = tl.load(part + channel // width, column_exists, other=0.0)
        pooled_mean = (of_each * tl.load(added_mean + channel // width, column_exists, other=0.0))[None, :]
        pooled_var = (of_each * tl.load(added_var + channel // width, column_exists, other=0.0))[None, :]
    sum_center = 0.0 * sum_bias
    for start in range(0, samples, SAMPLES):
        sample, exists, at = _tile(start, samples, channel, channels, channels, channel, SAMPLES)
        _, own, _, _, dmean, dvar, _, _, of_m, of_v = _gradients_at(
            at, channel[None, :], exists, total, centered, m, mean, rstd, scale, v, weight, gate_weight, gate_bias,
            gate_eps,
        )  # fmt: skip
        if IN:
            a, b = 1.0, 1.0
            if shares is not None:
                a, b = tl.load(shares), tl.load(shares + IN + LN + BN)
            of_m += a * dmean
            of_v += b * dvar
        if LN:
            a, b = 1.0, 1.0
            if shares is not None:
                a, b = tl.load(shares + IN), tl.load(shares + IN + LN + BN + IN)
            of_row = b * tl.load(dvars + sample, sample < samples, other=0.0)[:, None]
            distance = own - tl.load(ln_mean + sample, sample < samples, other=0.0)[:, None]
            of_m += a * tl.load(dmeans + sample, sample < samples, other=0.0)[:, None] + 2 * distance * of_row
            of_v += of_row
        of_bn = 0.0 * of_m
        if POOLED:
            a, b = 1.0, 1.0
            if shares is not None and added_mean is None:  # they have taken part in what is added
                a, b = tl.load(shares + IN + LN), tl.load(shares + IN + LN + BN + IN + LN)
            distance = own - _at(bn_mean, channel, column_exists)
            if center is not None:
                distance += _at(center, channel, column_exists) * own
            of_bn = a * pooled_mean + 2 * distance * (b * pooled_var)
            of_m += of_bn
            of_v += b * pooled_var
        if center is not None:
            of_shift = of_bn - dmean
            if POOLED:  # see blends.py
                sum_center += tl.where(exists, (own - own_mean) * of_shift, 0.0)
            else:
                sum_center += own * of_shift
            of_m += of_shift * _at(center, channel, column_exists)
        is_instance = channel[None, :] < instances
        of_m, of_v = tl.where(is_instance, dmean, of_m), tl.where(is_instance, dvar, of_v)
        tl.store(dm + at, of_m, exists)
        tl.store(dv + at, of_v * correction, exists)
    if center is not None:
        tl.store(dcenter + channel, tl.sum(sum_center, 0), column_exists)
    if dshares is not None:  # noqa: SIM102
        if tl.program_id(0) == 0:
            _gradient_of_softmax(dshares, shares, dmean_ratios, samples, IN + LN + BN, SAMPLES)
            dshares += (IN + LN + BN) * samples
            _gradient_of_softmax(dshares, shares + IN + LN + BN, dvar_ratios, samples, IN + LN + BN, SAMPLES)
