"""Calibrations at each position, before and behind the plane, as Triton kernels, two forward and two backward.

The equations, and the names in them, are those of :mod:`mmnorm.core.calibrations`. Tiles have all channels of their
positions, as in :mod:`mmnorm.core.position_kernels`, so that each kernel reads an element once, and computes z and u
again of x.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import elements, kernels, position_kernels
from .calibrations import Calibration
from .kernels import _at, _plane, _program, _span, _store_moments, _sum_of, jit
from .position_kernels import Columns, _tile

_TILE = 2048  # elements, and the most channels that there are kernels for
_WARPS = 16  # few elements a thread, for the registers that all that is computed of each takes


class Variant(NamedTuple):
    """What is compiled by itself: how a tensor is cut, and which statistics the calibrations are by."""

    tiles: Columns
    center: int
    gate: int

    @property
    def unit(self) -> int:
        return self.tiles.unit

    @property
    def enough(self) -> tuple[int, int]:
        return self.tiles.enough

    @property
    def constants(self) -> tuple:
        return *self.tiles, self.center, self.gate


def variant(x: Tensor, args: tuple) -> Variant | None:
    """What the kernels are compiled for; None where they are not for x, (N, C, *S)."""
    tiles, what = position_kernels.columns(x, _TILE), args[1]
    return None if tiles is None else Variant(tiles, what.center, what.gate)


def calibrated_moments(chosen: Variant, x: Tensor, what: Calibration) -> tuple[None, Tensor, Tensor]:
    """The moments of z; see :func:`mmnorm.core.calibrations.calibrated_moments`."""
    if not what.center:
        return None, *elements.take_moments(x)[1:3]
    (x,) = kernels.laid_out(chosen.tiles, (x,))
    center, *_ = _vectors(x, what)
    args = x, center, what.eps
    return None, *kernels.summed(_moments_of_z, x, chosen.tiles, chosen.constants, args, True)


def calibrated(
    chosen: Variant, x: Tensor, what: Calibration, z: Tensor | None, mean: Tensor, scale: Tensor, bias: Any
) -> Tensor:
    """y; see :func:`mmnorm.core.calibrations.calibrated`."""
    (x,) = kernels.laid_out(chosen.tiles, (x,))
    y, (programs, sizes) = torch.empty_like(x), kernels.sizes(x.shape, chosen.tiles, False)
    if what.gate:
        bias = 0.0 if what.bias is None else what.bias
    planes, vectors = kernels.strided((mean, scale, bias), x), _vectors(x, what)
    _launch(_calibrate, chosen, x, programs, x, y, *planes, *vectors, what.eps, *sizes)
    return y


def calibrated_sums(
    chosen: Variant, x: Tensor, what: Calibration, grad: Tensor, own_mean: Tensor, mean: Tensor, scale: Tensor
) -> tuple:
    """Sums over the positions; see :func:`mmnorm.core.calibrations.calibrated_sums`."""
    x, grad = kernels.laid_out(chosen.tiles, (x, grad))
    programs, sizes = kernels.sizes(x.shape, chosen.tiles, True)
    samples, channels = x.shape[:2]
    sums = x.new_empty((6 if what.gate else 2, samples, programs // samples, channels), dtype=torch.float32)
    planes, vectors = kernels.strided((own_mean, mean, scale), x), _vectors(x, what)
    _launch(_calibration_sums, chosen, x, programs, x, grad, *planes, *vectors, what.eps, sums, *sizes)
    total, centered, *of_gate = sums.sum(2)
    return None, None, total, centered, *(torch.stack(of_gate).sum(1) if of_gate else (None,) * 4)


def calibrated_gradient(
    chosen: Variant, x: Tensor, what: Calibration, grad: Tensor, du: None, z: None, own_mean: Tensor, mean: Tensor,
    scale: Tensor, dmean: Tensor, dvar: Tensor,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """dL/dx and dL/da; see :func:`mmnorm.core.calibrations.calibrated_gradient`."""
    x, grad = kernels.laid_out(chosen.tiles, (x, grad))
    dx, (programs, sizes) = torch.empty_like(x), kernels.sizes(x.shape, chosen.tiles, True)
    dcenter = x.new_empty((programs, x.shape[1]), dtype=torch.float32) if what.center else None
    planes, vectors = kernels.strided((own_mean, mean, scale, dmean, dvar), x), _vectors(x, what)
    _launch(_calibration_gradient, chosen, x, programs, x, grad, dx, *planes, *vectors, what.eps, dcenter, *sizes)
    return dx, None if dcenter is None else dcenter.sum(0)


def _vectors(x, what):
    """What a calibration learns, contiguous: a, c, d and w; None where there is none."""
    vectors = what.center_weight, what.gate_weight, what.gate_bias, what.weight
    kernels.check_devices(x, vectors)
    return [vector if vector is None else vector.to(torch.float32).contiguous() for vector in vectors]


def _launch(kernel, chosen, x, programs, *args):
    given = tuple(arg is None for arg in args)
    kernels.launch(kernel, x, chosen.constants, programs, *args, given=given, warps=_WARPS)


@triton.jit
def _statistic(value, exists, rows, eps, WHICH: tl.constexpr):
    """K at each position, and its derivative by each value."""
    value = tl.where(exists, value, 0.0)
    k = tl.sum(value, 0) / rows
    slope = tl.where(exists, 1.0 / rows, 0.0)
    if WHICH == 2:
        value = tl.where(exists, value - k[None, :], 0.0)
        k = tl.sqrt(tl.sum(value * value, 0) / rows + eps)
        slope = value / (rows * k)[None, :]
    return k, slope


@triton.jit
def _vector(vector, row, exists):
    return tl.load(vector + row, exists, other=0.0)[:, None]


@triton.jit
def _load_z(
    x, at, exists, rows, center, row, rows_exist, eps, CENTER: tl.constexpr, LAST: tl.constexpr, UNIT: tl.constexpr
):
    z = tl.load(_at(x, at, LAST, UNIT), exists, other=0.0).to(tl.float32)
    if CENTER:
        k, slope = _statistic(z, exists, rows, eps, CENTER)
        z = z + _vector(center, row, rows_exist) * k[None, :]
    return z


@triton.jit
def _gradient_of_u(
    u, g, exists, gate_weight, gate_bias, weight, row, rows, rows_exist, eps, GATE: tl.constexpr
):  # fmt: skip
    """dL/du of dL/dy, and what is summed up for c, d and w."""
    k, slope = _statistic(u, exists, rows, eps, GATE)
    c = _vector(gate_weight, row, rows_exist)
    gate = tl.sigmoid(_vector(gate_bias, row, rows_exist) + c * k[None, :])
    h = g
    if weight is not None:
        h = g * _vector(weight, row, rows_exist)
    argument = h * u * gate * (1.0 - gate)
    du = h * gate + slope * tl.sum(tl.where(exists, argument * c, 0.0), 0)[None, :]
    return du, argument * k[None, :], argument, g * u * gate


@jit
def _moments_of_z(
    x, center, eps, mean, var, channels, rows, length, blocks, splits, tiles,
    LAST: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CENTER: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance of z over each channel's split: as of :func:`mmnorm.core.kernels._moments`."""
    sample, row, rows_exist, split = _program(rows, blocks, splits, LAST, ROWS)
    begin, end, columns = _span(split, tiles, length, COLUMNS)
    begins, at, exists = _tile(sample, row, begin + columns, rows, length, LAST, UNIT)
    z = _load_z(x + begins, at, exists, rows, center, row, rows_exist, eps, CENTER, LAST, UNIT)
    shift = tl.sum(tl.where(exists, z, 0.0), 1) / tl.minimum(COLUMNS, end - begin)
    total = tl.zeros([ROWS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    for start in range(begin, end, COLUMNS):
        begins, at, exists = _tile(sample, row, start + columns, rows, length, LAST, UNIT)
        z = _load_z(x + begins, at, exists, rows, center, row, rows_exist, eps, CENTER, LAST, UNIT)
        distance = tl.where(exists, z - shift[:, None], 0.0)
        total += tl.sum(distance, 1)
        squares += tl.sum(distance * distance, 1)
    at = _sum_of(sample, row, rows, blocks, split, splits)
    _store_moments(mean + at, var + at, rows_exist, shift, total, squares, end - begin)


@jit
def _calibrate(
    x, y, mean, mean_of_sample, mean_of_channel, scale, scale_of_sample, scale_of_channel,
    bias, bias_of_sample, bias_of_channel, center, gate_weight, gate_bias, weight, eps,
    channels, rows, length, blocks, splits, tiles,
    LAST: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CENTER: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """y, a tile."""
    sample, row, rows_exist, split = _program(rows, blocks, splits, LAST, ROWS)
    begins, at, exists = _tile(sample, row, split * COLUMNS + tl.arange(0, COLUMNS), rows, length, LAST, UNIT)
    z = _load_z(x + begins, at, exists, rows, center, row, rows_exist, eps, CENTER, LAST, UNIT)
    m = _plane(mean, mean_of_sample, mean_of_channel, sample, row, rows_exist, channels)
    s = _plane(scale, scale_of_sample, scale_of_channel, sample, row, rows_exist, channels)
    b = _plane(bias, bias_of_sample, bias_of_channel, sample, row, rows_exist, channels)
    u = s * (z - m)
    if GATE:
        k, slope = _statistic(u, exists, rows, eps, GATE)
        u *= tl.sigmoid(_vector(gate_bias, row, rows_exist) + _vector(gate_weight, row, rows_exist) * k[None, :])
        if weight is not None:
            u *= _vector(weight, row, rows_exist)
    tl.store(_at(y + begins, at, LAST, UNIT), u + b, exists)


@jit
def _calibration_sums(
    x, grad, own_mean, own_of_sample, own_of_channel, mean, mean_of_sample, mean_of_channel,
    scale, scale_of_sample, scale_of_channel, center, gate_weight, gate_bias, weight, eps, sums,
    channels, rows, length, blocks, splits, tiles,
    LAST: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CENTER: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """Over each split: the sums of dL/du, of dL/du (z - own_mean) and, with a gate, for c, d, w and b."""
    sample, row, rows_exist, split = _program(rows, blocks, splits, LAST, ROWS)
    begin, end, columns = _span(split, tiles, length, COLUMNS)
    own = _plane(own_mean, own_of_sample, own_of_channel, sample, row, rows_exist, channels)
    m = _plane(mean, mean_of_sample, mean_of_channel, sample, row, rows_exist, channels)
    s = _plane(scale, scale_of_sample, scale_of_channel, sample, row, rows_exist, channels)
    total = tl.zeros([ROWS], tl.float32)
    centered = tl.zeros([ROWS], tl.float32)
    for_c = tl.zeros([ROWS], tl.float32)
    for_d = tl.zeros([ROWS], tl.float32)
    for_w = tl.zeros([ROWS], tl.float32)
    for_b = tl.zeros([ROWS], tl.float32)
    for start in range(begin, end, COLUMNS):
        begins, at, exists = _tile(sample, row, start + columns, rows, length, LAST, UNIT)
        z = _load_z(x + begins, at, exists, rows, center, row, rows_exist, eps, CENTER, LAST, UNIT)
        g = tl.load(_at(grad + begins, at, LAST, UNIT), exists, other=0.0).to(tl.float32)
        if GATE:
            for_b += tl.sum(g, 1)
            g, of_c, of_d, of_w = _gradient_of_u(
                s * (z - m), g, exists, gate_weight, gate_bias, weight, row, rows, rows_exist, eps, GATE
            )
            g = tl.where(exists, g, 0.0)
            for_c += tl.sum(tl.where(exists, of_c, 0.0), 1)
            for_d += tl.sum(tl.where(exists, of_d, 0.0), 1)
            for_w += tl.sum(tl.where(exists, of_w, 0.0), 1)
        total += tl.sum(g, 1)
        centered += tl.sum(tl.where(exists, g * (z - own), 0.0), 1)
    programs = tl.num_programs(0).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * rows + row
    tl.store(sums + at, total, rows_exist)
    tl.store(sums + programs * rows + at, centered, rows_exist)
    if GATE:
        tl.store(sums + 2 * programs * rows + at, for_c, rows_exist)
        tl.store(sums + 3 * programs * rows + at, for_d, rows_exist)
        tl.store(sums + 4 * programs * rows + at, for_w, rows_exist)
        tl.store(sums + 5 * programs * rows + at, for_b, rows_exist)


@jit
def _calibration_gradient(
    x, grad, dx, own_mean, own_of_sample, own_of_channel, mean, mean_of_sample, mean_of_channel,
    scale, scale_of_sample, scale_of_channel, dmean, dmean_of_sample, dmean_of_channel,
    dvar, dvar_of_sample, dvar_of_channel, center, gate_weight, gate_bias, weight, eps, dcenter,
    channels, rows, length, blocks, splits, tiles,
    LAST: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CENTER: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """dL/dx, and over each split the sum for a."""
    sample, row, rows_exist, split = _program(rows, blocks, splits, LAST, ROWS)
    begin, end, columns = _span(split, tiles, length, COLUMNS)
    m = _plane(mean, mean_of_sample, mean_of_channel, sample, row, rows_exist, channels)
    s = _plane(scale, scale_of_sample, scale_of_channel, sample, row, rows_exist, channels)
    for_a = tl.zeros([ROWS], tl.float32)
    for start in range(begin, end, COLUMNS):
        begins, at, exists = _tile(sample, row, start + columns, rows, length, LAST, UNIT)
        z = tl.load(_at(x + begins, at, LAST, UNIT), exists, other=0.0).to(tl.float32)
        g = tl.load(_at(grad + begins, at, LAST, UNIT), exists, other=0.0).to(tl.float32)
        if CENTER:
            k, slope = _statistic(z, exists, rows, eps, CENTER)
            a = _vector(center, row, rows_exist)
            z = z + a * k[None, :]
        if GATE:
            g, _c, _d, _w = _gradient_of_u(
                s * (z - m), g, exists, gate_weight, gate_bias, weight, row, rows, rows_exist, eps, GATE
            )
        # loaded for each tile, for the registers that they would take all along
        own = _plane(own_mean, own_of_sample, own_of_channel, sample, row, rows_exist, channels)
        c0 = _plane(dmean, dmean_of_sample, dmean_of_channel, sample, row, rows_exist, channels) / length
        c1 = _plane(dvar, dvar_of_sample, dvar_of_channel, sample, row, rows_exist, channels) * (2.0 / length)
        dz = tl.where(exists, s * g + (c1 * (z - own) + c0), 0.0)
        if CENTER:
            for_a += tl.sum(dz * k[None, :], 1)
            dz += slope * tl.sum(a * dz, 0)[None, :]
        tl.store(_at(dx + begins, at, LAST, UNIT), dz, exists)
    if CENTER:
        tl.store(dcenter + tl.program_id(0).to(tl.int64) * rows + row, for_a, rows_exist)
