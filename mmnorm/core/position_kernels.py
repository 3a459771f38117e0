"""What is computed over the channels at each position as Triton kernels: a tile has all channels of its positions.

So each of them reads an element once, whatever it sums over the channels. Names and results are those of the functions
of :mod:`mmnorm.core.positions`; the rest is as in :mod:`mmnorm.core.kernels`, in either format by sample, with one
block of rows.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import kernels
from .kernels import _at, _plane, _program, _span, jit

_TILE = 4096  # elements, and the most channels that there are kernels for
_LARGEST_SAMPLE = 2**30  # elements, which kernels count in 32 bits, with those that a last tile has beyond it


class Columns(NamedTuple):
    """How a tensor is cut: the constants of its kernels, as of a :class:`~mmnorm.core.kernels.Tiling`.

    ``rows`` is the power of two that the channels fit in.
    """

    last: bool
    unit: int
    rows: int
    columns: int

    @property
    def by_sample(self) -> bool:
        """Whether the rows are those of each sample, not all."""
        return True

    @property
    def enough(self) -> tuple[int, int]:
        """More channels and positions than these make no difference to how a tensor is cut."""
        return self.rows, 16 * self.columns

    @property
    def warps(self) -> int:
        """Of a program: 16 elements a thread, and 8 for scalar loads, for the registers that addresses take."""
        return 16 if self.unit == 1 else 8


def variant(x: Tensor, _: tuple) -> Columns | None:
    """What the kernels are compiled for: how x, (N, C, *S), is cut; None where it has no positions or is too large."""
    return columns(x, _TILE)


def columns(x: Tensor, tile: int) -> Columns | None:
    """How x is cut in tiles of so many elements; None where one cannot have all channels, or x is not for kernels."""
    tiles = kernels.tiling(x)
    if tiles is None or x.numel() > _LARGEST_SAMPLE * len(x):
        return None
    return _columns(tiles.last, tiles.unit, x.shape[1], tile)


@lru_cache(kernels.SHAPES_KEPT)
def _columns(last, unit, channels, tile):
    rows = max(triton.next_power_of_2(channels), 16)
    return Columns(last, unit, rows, tile // rows) if rows <= tile else None


def over_channels(
    tiles: Columns, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize each position; see :func:`mmnorm.core.positions.over_channels`."""
    (x,) = kernels.laid_out(tiles, (x,))
    y, mean, rstd = torch.empty_like(x), _of_positions(x), _of_positions(x)
    programs, sizes = kernels.sizes(x.shape, tiles, False)
    planes = kernels.strided((1.0 if weight is None else weight, 0.0 if bias is None else bias), x)
    kernels.launch(_over_channels, x, tiles, programs, x, y, *planes, mean, rstd, eps, *sizes, warps=tiles.warps)
    return y, mean, rstd


def over_channels_gradients(
    tiles: Columns, grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """All gradients; see :func:`mmnorm.core.positions.over_channels_gradients`."""
    x, grad = kernels.laid_out(tiles, (x, grad))
    dx = torch.empty_like(x)
    programs, sizes = kernels.sizes(x.shape, tiles, True)
    sums = x.new_empty((2, programs, x.shape[1]), dtype=torch.float32)
    plane = kernels.strided((1.0 if weight is None else weight,), x)
    args = x, grad, dx, *plane, mean, rstd, *sums, *sizes
    kernels.launch(_over_channels_gradients, x, tiles, programs, *args, warps=tiles.warps)
    return dx, *sums.sum(1)


def _of_positions(x):
    return x.new_empty((len(x), 1, *x.shape[2:]), dtype=torch.float32)


@triton.jit
def _tile(sample, row, position, rows, length, LAST: tl.constexpr, UNIT: tl.constexpr):
    """Where a sample begins, the offsets of a tile in it, and which of them exist."""
    if LAST:  # nothing is rounded: it tells the compiler
        rows = rows // UNIT * UNIT
        at = position[None, :] * rows + row[:, None]
    else:
        length = length // UNIT * UNIT
        at = row[:, None] * length + position[None, :]
    return sample.to(tl.int64) * rows * length, at, (row < rows)[:, None] & (position < length)[None, :]


@jit
def _over_channels(
    x, y, weight, weight_of_sample, weight_of_channel, bias, bias_of_sample, bias_of_channel, mean, rstd, eps,
    channels, rows, length, blocks, splits, tiles,
    LAST: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``y = weight (x - m) r + bias``, with m and ``r = 1 / sqrt(v + eps)`` of each position, a tile."""
    sample, row, rows_exist, split = _program(rows, blocks, splits, LAST, ROWS)
    w = _plane(weight, weight_of_sample, weight_of_channel, sample, row, rows_exist, channels)
    b = _plane(bias, bias_of_sample, bias_of_channel, sample, row, rows_exist, channels)
    position = split * COLUMNS + tl.arange(0, COLUMNS)
    begins, at, exists = _tile(sample, row, position, rows, length, LAST, UNIT)
    value = tl.load(_at(x + begins, at, LAST, UNIT), exists, other=0.0).to(tl.float32)
    m = tl.sum(value, 0) / rows
    centered = tl.where(exists, value - m[None, :], 0.0)
    r = tl.rsqrt(tl.sum(centered * centered, 0) / rows + eps)
    tl.store(_at(y + begins, at, LAST, UNIT), w * (centered * r[None, :]) + b, exists)
    at = sample.to(tl.int64) * length + position
    tl.store(mean + at, m, position < length)
    tl.store(rstd + at, r, position < length)


@jit
def _over_channels_gradients(
    x, grad, dx, weight, weight_of_sample, weight_of_channel, mean, rstd, products, total,
    channels, rows, length, blocks, splits, tiles,
    LAST: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dx, and the sums of grad * k and of grad over a split, with the names of ``positions._OverChannels``."""
    sample, row, rows_exist, split = _program(rows, blocks, splits, LAST, ROWS)
    begin, end, columns = _span(split, tiles, length, COLUMNS)
    w = _plane(weight, weight_of_sample, weight_of_channel, sample, row, rows_exist, channels)
    sum_of_products = tl.zeros([ROWS], tl.float32)
    sum_of_grad = tl.zeros([ROWS], tl.float32)
    for start in range(begin, end, COLUMNS):
        position = start + columns
        begins, at, exists = _tile(sample, row, position, rows, length, LAST, UNIT)
        value = tl.load(_at(x + begins, at, LAST, UNIT), exists, other=0.0).to(tl.float32)
        g = tl.load(_at(grad + begins, at, LAST, UNIT), exists, other=0.0).to(tl.float32)
        here = sample.to(tl.int64) * length + position
        m = tl.load(mean + here, position < length, other=0.0)[None, :]
        r = tl.load(rstd + here, position < length, other=0.0)[None, :]
        k, h = (value - m) * r, w * g
        along = tl.sum(h * k, 0) / rows
        common = tl.sum(h, 0) / rows
        tl.store(_at(dx + begins, at, LAST, UNIT), r * (h - common[None, :] - k * along[None, :]), exists)
        sum_of_products += tl.sum(g * k, 1)
        sum_of_grad += tl.sum(g, 1)
    at = tl.program_id(0).to(tl.int64) * rows + row
    tl.store(products + at, sum_of_products, rows_exist)
    tl.store(total + at, sum_of_grad, rows_exist)
