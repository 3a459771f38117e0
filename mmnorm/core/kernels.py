"""The passes over the elements of a tensor as Triton kernels; names and results are those of the ones on ATen.

A kernel sees x, (N, C, L), as rows of positions. Contiguous: one sample of N * C rows, whose positions lie side by
side. Channels last: N samples of C rows, which lie side by side. A program has a tile of so many rows and so many
positions, or several tiles one behind the other where it sums; sums of long rows are split over programs, and a second
kernel joins what they found, always in the same order. Offsets are of 64 bits. Planes are float32 and may be expanded.

What is a constant of a kernel is in :class:`Tiling` alone, so that images of all sizes share a few compiled kernels.
"""

import inspect
from collections.abc import Iterable
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver

from .elements import memory_format

_TILE = 2048  # elements
_PROGRAMS = 1024  # that keep a large card busy
_MOST_SPLITS = 256
_ROWS_JOINED = 8  # by a program
_ALIGNMENT = 16  # bytes, the most that a thread loads at once
# Rows and positions, which kernels count in 32 bits, three scopes of them too, are at most so many
LARGEST_AXIS = 2**29
SHAPES_KEPT = 4096  # of tensors, whose cut is not thought about again

# Versions of Triton whose compiled kernels are known to be launched as here; others dispatch each call themselves
_KNOWN = (3, 6) <= tuple(int(part) for part in triton.__version__.split('.')[:2]) <= (3, 8)

_compiled: dict[tuple, Any] = {}


class Tiling(NamedTuple):
    """How a tensor is cut: the constants of its kernels.

    ``last``: channels last. ``unit``: so many elements begin at a multiple of 16 bytes, which a thread loads at once; 1
    where the pointer or the sizes do not allow it. ``rows``, ``columns``: of a tile, in rows and in positions.
    """

    last: bool
    unit: int
    rows: int
    columns: int

    @property
    def enough(self) -> tuple[int, int]:
        """More channels and positions than these make no difference to how a tensor is cut."""
        return 80, 4112

    @property
    def by_sample(self) -> bool:
        """Whether the rows are those of each sample, not all."""
        return self.last

    @property
    def warps(self) -> int:
        """Of a program: more for scalar loads, for the registers that addresses take."""
        return 8 if self.unit == 1 else 4


def tiling(x: Tensor) -> Tiling | None:
    """The tiling of x, (N, C, *S), or of its contiguous copy where it is neither contiguous nor channels last.

    None where the kernels are not for it: it has no positions, or too many.
    """
    last = memory_format(x) != torch.contiguous_format
    is_copied = not last and not x.is_contiguous()
    return _tiling(x.shape, _ALIGNMENT // x.itemsize, last, is_copied or x.data_ptr() % _ALIGNMENT == 0)


@lru_cache(SHAPES_KEPT)
def _tiling(shape, unit, last, is_aligned):
    channels, length = shape[1], prod(shape[2:])
    if len(shape) <= 2 or max(shape[0] * channels, length) > LARGEST_AXIS:
        return None
    # contiguous: long rows; rows of some hundreds; many of, say, 7 x 7 positions share a program
    rows = (64 if channels > 32 else 32) if last else 1 if length > 1024 else 8 if length > 64 else 32
    is_aligned = is_aligned and (channels if last else length) % unit == 0
    return Tiling(last, unit if is_aligned else 1, rows, _TILE // rows)


def variant(x: Tensor, _: tuple) -> Tiling | None:
    """What the kernels are compiled for: the tiling of x."""
    return tiling(x)


def take_moments(tiles: Tiling, x: Tensor) -> tuple[None, Tensor, Tensor, None]:
    """Mean and biased variance of each channel of each sample, (N, C) in float32, among what ATen's needs beside."""
    return None, *_summed(_moments, tiles, (x,)), None


def take_means(tiles: Tiling, x: Tensor) -> Tensor:
    """The means alone, (N, C)."""
    return take_moments(tiles, x)[1]


def affine(tiles: Tiling, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``scale * x + shift``, both broadcasting to (N, C), rounded once."""
    return complete(tiles, x, (), 0.0, scale, shift)


def complete(tiles: Tiling, x: Tensor, moments: tuple, mean: Any, scale: Any, bias: Any) -> Tensor:
    """``scale * (x - mean) + bias``, planes broadcasting to (N, C) or numbers, rounded once."""
    return _mapped(_affine, tiles, (x,), (mean, scale, bias))


def reduce(tiles: Tiling, grad: Tensor, x: Tensor, own_mean: Tensor) -> tuple[Tensor, Tensor]:
    """``sum(grad)`` and ``sum(grad * (x - own_mean))`` over the positions, (N, C) each."""
    return _summed(_reduce, tiles, (x, grad), (own_mean,))


def input_gradient(tiles: Tiling, grad: Tensor, x: Tensor, own_mean: Any, scale: Any, dmean: Any, dvar: Any) -> Tensor:
    """``scale * grad + dmean / L + 2 * dvar * (x - own_mean) / L``, all planes broadcasting to (N, C), rounded once."""
    return _mapped(_input_gradient, tiles, (x, grad), (own_mean, scale, dmean, dvar))


def _summed(kernel, tiles, elements, planes=()):
    """Two planes of sums over the positions."""
    x, *_ = elements = laid_out(tiles, elements)
    return summed(kernel, x, tiles, tiles, (*elements, *strided(planes, x)), kernel is _moments)


def summed(kernel, x, tiles, constants, args, moments, given=None):
    """Two planes of what a kernel finds over the positions, moments or sums; it is given args, the planes and sizes."""
    programs, numbers = sizes(x.shape, tiles, True)
    *_, length, _, splits, count = numbers
    plane = x.shape[:2]
    found = _planes(x, plane if splits == 1 else (splits, *plane))
    launch(kernel, x, constants, programs, *args, *found, *numbers, given=given, warps=tiles.warps)
    if splits == 1:
        return found
    joined = _planes(x, plane)
    rows, chunk = prod(plane), count * tiles.columns
    joining = moments, _ROWS_JOINED, _MOST_SPLITS
    launch(_join, x, joining, divided(rows, _ROWS_JOINED), *found, *joined, rows, length, splits, chunk)
    return joined


def _mapped(kernel, tiles, elements, planes):
    """A tensor like x, computed element by element."""
    x, *_ = elements = laid_out(tiles, elements)
    out = torch.empty_like(x)
    programs, numbers = sizes(x.shape, tiles, False)
    launch(kernel, x, tiles, programs, *elements, out, *strided(planes, x), *numbers, warps=tiles.warps)
    return out


def _planes(x, shape):
    # sizes one by one, which takes less time than as one argument
    plane = torch.empty(*shape, dtype=torch.float32, device=x.device)
    return plane, torch.empty_like(plane)


def laid_out(tiles, elements):
    """Tensors in the type and the memory format of the first, aligned as its tiling has it: copies where they are not.

    As they are where they can be: each call that does nothing costs as much as a launch.
    """
    dtype, layout = elements[0].dtype, memory_format(elements[0]) if tiles.last else torch.contiguous_format
    tensors = [
        t
        if t.dtype == dtype and not t.is_neg() and t.is_contiguous(memory_format=layout)
        else t.resolve_neg().to(dtype).contiguous(memory_format=layout)
        for t in elements
    ]
    return [t.clone() if tiles.unit > 1 and t.data_ptr() % _ALIGNMENT else t for t in tensors]


def strided(planes, x):
    """Of each plane what kernels take: it, and how far its next sample and its next channel are."""
    given: list[Any] = []
    shape = x.shape[:2]
    for plane in planes:
        if not torch.is_tensor(plane):
            plane = torch.full((), plane, dtype=torch.float32, device=x.device)
        if plane.dtype != torch.float32:
            plane = plane.to(torch.float32)
        strides = plane.stride()
        given += plane, *(strides if plane.shape == shape else _expanded(plane.shape, strides, shape))
    check_devices(x, given[::3])
    return given


@lru_cache(SHAPES_KEPT)
def _expanded(sizes, strides, shape):
    """The strides that a plane has if it is expanded."""
    return torch.empty_strided(sizes, strides, device='meta').expand(shape).stride()


def check_devices(x: Tensor, tensors: Iterable[Tensor | None]) -> None:
    """Raise a RuntimeError if one is not where x is: a kernel would read whatever is at its address there."""
    device = x.device
    for tensor in tensors:
        if tensor is not None and tensor.device != device:
            raise RuntimeError(
                f'Expected all tensors to be on the same device: a tensor of shape {tuple(x.shape)} to normalize is on '
                f'{device}, and statistics or parameters to normalize it with are on {tensor.device}. Move the '
                'layer or the input'
            )


@lru_cache(SHAPES_KEPT)
def sizes(shape, tiles, sums):
    """The number of programs, and the sizes that kernels take: the rule by which work is split."""
    (samples, channels), length = shape[:2], prod(shape[2:])
    samples, rows = (samples, channels) if tiles.by_sample else (1, samples * channels)
    blocks, splits, count = divided(rows, tiles.rows), divided(length, tiles.columns), 1
    if sums:
        wanted = min(splits, _MOST_SPLITS, divided(_PROGRAMS, samples * blocks))
        count = divided(splits, wanted)
        splits = divided(splits, count)
    return samples * blocks * splits, (channels, rows, length, blocks, splits, count)


def divided(number: int, by: int) -> int:
    """How many parts of a size it takes; ``triton.cdiv`` unwraps its arguments first, for 2 microseconds."""
    return -(-number // by)


def launch(kernel, x, constants, programs, *args, given=None, warps=4):
    """Launch a kernel on the device and the current stream of x; ``given`` tells which of its arguments are None."""
    device = x.get_device()
    if device >= 0 and device != torch.cuda.current_device():
        with torch.cuda.device(device):
            return launch(kernel, x, constants, programs, *args, given=given, warps=warps)
    key = kernel.__name__, device, x.dtype, constants, given
    compiled = _compiled.get(key)
    if compiled is None:
        compiled = kernel[(programs,)](*args, *constants, num_warps=warps)
        if _KNOWN and isinstance(compiled, CompiledKernel):
            _compiled[key] = compiled
    elif _is_watched():
        compiled[programs, 1, 1](*args, *constants)
    else:  # a tenth of the host time of Triton's own dispatch, which would find the same and do no more
        stream = driver.active.get_current_stream(device)
        kept = compiled.function, compiled.packed_metadata
        compiled.run(programs, 1, 1, stream, *kept, None, None, None, *args, *constants)


def _is_watched():
    """Whether somebody, such as Triton's profiler, is to be told of each launch."""
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return not (type(enter) is type(leave) is knobs.HookChain) or enter.calls or leave.calls


def jit(function):
    """Compile a function for its constants alone: no size and no address makes a variant of it."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.annotation is not tl.constexpr]
    return triton.jit(function, do_not_specialize=names, do_not_specialize_on_alignment=names)


@triton.jit
def _program(rows, blocks, splits, LAST: tl.constexpr, ROWS: tl.constexpr):
    """The sample, the rows in it, which of them exist, and the split of them that a program has."""
    program = tl.program_id(0)
    if LAST:  # programs that follow each other read what lies side by side
        block, split = program % blocks, program // blocks % splits
    else:
        block, split = program // splits % blocks, program % splits
    row = block * ROWS + tl.arange(0, ROWS)
    return program // (blocks * splits), row, row < rows, split


@triton.jit
def _tile(sample, row, position, rows, length, LAST: tl.constexpr, UNIT: tl.constexpr):
    """Offsets of a tile, and which of them exist."""
    if LAST:  # nothing is rounded: it tells the compiler
        rows = rows // UNIT * UNIT
    else:
        length = length // UNIT * UNIT
    exists = (row < rows)[:, None] & (position < length)[None, :]
    if LAST:
        at = (sample.to(tl.int64) * length + position)[None, :] * rows + row[:, None]
    else:
        at = row.to(tl.int64)[:, None] * length + position[None, :]
    return at, exists


@triton.jit
def _span(split, tiles, length, COLUMNS: tl.constexpr):
    """Where a split begins and ends, and the positions of a tile from there on."""
    begin = split * tiles * COLUMNS
    return begin, tl.minimum(begin + tiles * COLUMNS, length), tl.arange(0, COLUMNS)


@triton.jit
def _sum_of(sample, row, rows, blocks, split, splits):
    """Where the sums of rows of a split are, (splits, samples, rows)."""
    return split * (tl.num_programs(0) // (blocks * splits) * rows).to(tl.int64) + sample * rows + row


@triton.jit
def _store_moments(mean, var, exists, shift, total, squares, count):
    """Mean and biased variance of so many values, of the sums of their distances to a shift and of these squared."""
    distance = total / count
    tl.store(mean, shift + distance, exists)
    # not below 0 by rounding, which a NaN must pass
    spread = squares / count - distance * distance
    tl.store(var, tl.where(spread < 0, 0.0, spread), exists)


@triton.jit
def _at(elements, at, LAST: tl.constexpr, UNIT: tl.constexpr):
    """Pointers to elements; each run of them begins at a multiple of 16 bytes, where the compiler is told so."""
    pointers = elements + at
    if UNIT > 1:
        pointers = tl.multiple_of(pointers, (16, 1) if LAST else (1, 16))
    return pointers


@triton.jit
def _plane(plane, of_sample, of_channel, sample, row, exists, channels):
    """A plane's values of the rows, as a column."""
    at = (sample + row // channels).to(tl.int64) * of_sample + (row % channels).to(tl.int64) * of_channel
    return tl.load(plane + at, exists, other=0.0)[:, None]


@jit
def _moments(
    x, mean, var, channels, rows, length, blocks, splits, tiles,
    LAST: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance of each row's split: sums of the distance from the mean of its first tile."""
    sample, row, rows_exist, split = _program(rows, blocks, splits, LAST, ROWS)
    begin, end, columns = _span(split, tiles, length, COLUMNS)
    at, exists = _tile(sample, row, begin + columns, rows, length, LAST, UNIT)
    first = tl.load(_at(x, at, LAST, UNIT), exists, other=0.0).to(tl.float32)
    shift = tl.sum(first, 1) / tl.minimum(COLUMNS, end - begin)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(begin, end, COLUMNS):
        at, exists = _tile(sample, row, start + columns, rows, length, LAST, UNIT)
        value = tl.load(_at(x, at, LAST, UNIT), exists, other=0.0).to(tl.float32)
        distance = tl.where(exists, value - shift[:, None], 0.0)
        total += distance
        squares += distance * distance
    at = _sum_of(sample, row, rows, blocks, split, splits)
    _store_moments(mean + at, var + at, rows_exist, shift, tl.sum(total, 1), tl.sum(squares, 1), end - begin)


@jit
def _reduce(
    x, grad, own_mean, mean_of_sample, mean_of_channel, total, centered,
    channels, rows, length, blocks, splits, tiles,
    LAST: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The sums of grad and of grad * (x - own_mean) over each row's split."""
    sample, row, rows_exist, split = _program(rows, blocks, splits, LAST, ROWS)
    begin, end, columns = _span(split, tiles, length, COLUMNS)
    m = _plane(own_mean, mean_of_sample, mean_of_channel, sample, row, rows_exist, channels)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(begin, end, COLUMNS):
        at, exists = _tile(sample, row, start + columns, rows, length, LAST, UNIT)
        value = tl.load(_at(x, at, LAST, UNIT), exists, other=0.0).to(tl.float32)
        g = tl.load(_at(grad, at, LAST, UNIT), exists, other=0.0).to(tl.float32)
        sums += g
        products += tl.where(exists, g * (value - m), 0.0)
    at = _sum_of(sample, row, rows, blocks, split, splits)
    tl.store(total + at, tl.sum(sums, 1), rows_exist)
    tl.store(centered + at, tl.sum(products, 1), rows_exist)


@jit
def _join(
    first, second, joined_first, joined_second, rows, length, splits, chunk,
    MOMENTS: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Join the splits of all rows: sums, or means and variances, by Chan's formula."""
    row, split = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, SPLITS)
    exists = (split < splits)[:, None] & (row < rows)[None, :]
    at = split.to(tl.int64)[:, None] * rows + row[None, :]
    a = tl.load(first + at, exists, other=0.0)
    b = tl.load(second + at, exists, other=0.0)
    if MOMENTS:
        count = tl.where(split < splits, tl.minimum(chunk, length - split * chunk), 0)
        share = (count.to(tl.float32) / length)[:, None]
        mean = tl.sum(share * a, 0)
        distance = a - mean[None, :]
        tl.store(joined_first + row, mean, row < rows)
        tl.store(joined_second + row, tl.sum(share * (b + distance * distance), 0), row < rows)
    else:
        tl.store(joined_first + row, tl.sum(a, 0), row < rows)
        tl.store(joined_second + row, tl.sum(b, 0), row < rows)


@jit
def _affine(
    x, y, mean, mean_of_sample, mean_of_channel, scale, scale_of_sample, scale_of_channel,
    bias, bias_of_sample, bias_of_channel, channels, rows, length, blocks, splits, tiles,
    LAST: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``y = scale * (x - mean) + bias``, a tile."""
    sample, row, rows_exist, split = _program(rows, blocks, splits, LAST, ROWS)
    m = _plane(mean, mean_of_sample, mean_of_channel, sample, row, rows_exist, channels)
    s = _plane(scale, scale_of_sample, scale_of_channel, sample, row, rows_exist, channels)
    b = _plane(bias, bias_of_sample, bias_of_channel, sample, row, rows_exist, channels)
    at, exists = _tile(sample, row, split * COLUMNS + tl.arange(0, COLUMNS), rows, length, LAST, UNIT)
    value = tl.load(_at(x, at, LAST, UNIT), exists, other=0.0).to(tl.float32)
    tl.store(_at(y, at, LAST, UNIT), s * (value - m) + b, exists)


@jit
def _input_gradient(
    x, grad, dx, own_mean, mean_of_sample, mean_of_channel, scale, scale_of_sample, scale_of_channel,
    dmean, dmean_of_sample, dmean_of_channel, dvar, dvar_of_sample, dvar_of_channel,
    channels, rows, length, blocks, splits, tiles,
    LAST: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``dx = scale * grad + dmean / L + 2 * dvar / L * (x - own_mean)``, a tile."""
    sample, row, rows_exist, split = _program(rows, blocks, splits, LAST, ROWS)
    m = _plane(own_mean, mean_of_sample, mean_of_channel, sample, row, rows_exist, channels)
    s = _plane(scale, scale_of_sample, scale_of_channel, sample, row, rows_exist, channels)
    c0 = _plane(dmean, dmean_of_sample, dmean_of_channel, sample, row, rows_exist, channels) / length
    c1 = _plane(dvar, dvar_of_sample, dvar_of_channel, sample, row, rows_exist, channels) * (2.0 / length)
    at, exists = _tile(sample, row, split * COLUMNS + tl.arange(0, COLUMNS), rows, length, LAST, UNIT)
    value = tl.load(_at(x, at, LAST, UNIT), exists, other=0.0).to(tl.float32)
    g = tl.load(_at(grad, at, LAST, UNIT), exists, other=0.0).to(tl.float32)
    tl.store(_at(dx, at, LAST, UNIT), s * g + (c1 * (value - m) + c0), exists)
