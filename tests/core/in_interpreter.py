"""The kernels, by Triton's interpreter on tensors of the CPU: run by ``test_kernels.py``, in a process of its own."""

import sys
import warnings
from functools import partial
from importlib import util
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from torch import distributed
from torch.utils._pytree import tree_leaves, tree_map_only

from mmnorm.core import (
    BN,
    backends,
    blends,
    calibration_kernels,
    calibrations,
    elements,
    kernels,
    moments,
    normalize,
    plane_kernels,
    position_kernels,
    positions,
    ranks,
    use_triton,
)
from mmnorm.core.ranks import parts_of
from mmnorm.norms import PlaneNorm

from ..norms.cases import EVERY, build, described, randomized
from .cards import kernels_everywhere

LAST, LAST_3D = torch.channels_last, torch.channels_last_3d
TYPES = torch.float32, torch.float16, torch.bfloat16


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def everywhere():
    with kernels_everywhere():
        yield


@pytest.fixture
def launched(everywhere):
    """The names of the kernels that are launched."""
    names = []
    launch = kernels.launch

    def noting(kernel, *args, **kwargs):
        names.append(kernel.fn.__name__)
        launch(kernel, *args, **kwargs)

    with mock.patch.object(kernels, 'launch', noting):
        yield names


def tensor(shape, dtype=torch.float32, layout=torch.contiguous_format, offset=0.0):
    return (torch.randn(shape) + offset).to(dtype).contiguous(memory_format=layout)


def check(x, grad, close):
    """Compare all functions with their formulas in float64; planes are full and expanded."""
    n, c, *positions = x.shape
    spread = partial(elements.spread, x=x)
    mean, scale, bias, dmean, dvar = (
        torch.randn(shape).expand(n, c) for shape in ((n, 1), (1, c), (1, 1), (n, c), (n, 1))
    )
    wide, wide_grad, length = x.double(), grad.double(), x[0, 0].numel()
    var, own_mean = (moment.view(n, c) for moment in torch.var_mean(wide.flatten(2), 2, correction=0))
    taken = elements.take_moments(x)
    assert taken[0] is None
    close(taken[1], own_mean)
    close(taken[2], var)
    close(elements.take_means(x), own_mean)
    # as the plane does it: means near the tensor's own
    mean = own_mean.float() + mean
    centered = wide - spread(mean.double())
    close(elements.complete(x, taken, mean, scale, bias), spread(scale) * centered + spread(bias))
    close(elements.complete(x, taken, mean, scale, 0.5), spread(scale) * centered + 0.5)
    close(elements.affine(x, scale, bias - mean * scale), spread(scale) * wide + spread(bias - mean * scale).double())
    own = taken[1].double()
    total, products = elements.reduce(grad, x, taken[1])
    close(total, wide_grad.flatten(2).sum(2), scale=length**0.5)
    close(products, (wide_grad * (wide - spread(own))).flatten(2).sum(2), scale=length**0.5)
    dx = elements.input_gradient(grad, x, taken[1], scale, dmean, dvar)
    wanted = spread(scale) * wide_grad + spread(dmean) / length + 2 * spread(dvar) / length * (wide - spread(own))
    close(dx, wanted)
    for result in (elements.affine(x, scale, bias), dx):
        assert result.shape == x.shape and result.dtype == x.dtype
        assert elements.memory_format(result) == elements.memory_format(x)


def within(dtype, offset=0.0):
    """A comparison: half precision rounds once, the statistics are float32's; of an offset, a few of its last bits."""

    def close(ours, exact, scale=1.0):
        eps = torch.finfo(dtype if ours.dtype == dtype else torch.float32).eps
        off = (ours.double() - exact).abs()
        allowed = eps * exact.abs() + 1e-6 * max(scale, 1) * (5 + offset)
        assert (off <= allowed).all(), f'{off.max():.3g}'

    return close


SHAPES = [
    ((3, 5, 7, 7), torch.contiguous_format),  # 15 rows share a program
    ((2, 3, 1, 1), torch.contiguous_format),
    ((2, 8, 4, 4), torch.contiguous_format),  # aligned
    ((2, 5, 9, 19), torch.contiguous_format),  # rows of some hundreds
    ((1, 2, 50, 53), torch.contiguous_format),  # long rows, split
    ((3, 5, 7, 7), LAST),
    ((2, 8, 5, 9), LAST),  # aligned
    ((2, 35, 3, 5), LAST),
    ((2, 3, 130), torch.contiguous_format),
    ((2, 4, 2, 3, 4), LAST_3D),
]


@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.parametrize('shape, layout', SHAPES)
def test_functions_equal_their_formulas(everywhere, shape, layout, dtype):
    check(tensor(shape, dtype, layout, 3), tensor(shape, dtype, layout), within(dtype))


POSITIONS = [
    ((3, 5, 7, 7), torch.contiguous_format),
    ((2, 1, 3, 3), torch.contiguous_format),
    ((2, 130, 1, 1), torch.contiguous_format),
    ((2, 24, 20, 20), torch.contiguous_format),  # aligned, several tiles
    ((1, 2000, 3, 4), torch.contiguous_format),
    ((3, 5, 7, 7), LAST),
    ((2, 8, 20, 20), LAST),
    ((1, 2000, 3, 1), LAST),
    ((2, 3, 130), torch.contiguous_format),
    ((2, 4, 2, 3, 4), LAST_3D),
]


@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.parametrize('shape, layout', POSITIONS)
def test_functions_over_channels_equal_their_formulas(launched, monkeypatch, shape, layout, dtype):
    monkeypatch.setattr(kernels, '_MOST_SPLITS', 2)
    kernels.sizes.cache_clear()
    x, grad, close = tensor(shape, dtype, layout, 3), tensor(shape, dtype, layout), within(dtype, 3)
    weight, bias = torch.randn(2, shape[1])
    for w, b in ((weight, bias), (None, None)):
        leaves = x, torch.ones(shape[1]) if w is None else w, torch.zeros(shape[1]) if b is None else b
        wide, exact_w, exact_b = (leaf.double().requires_grad_() for leaf in leaves)
        var, mean = torch.var_mean(wide, 1, correction=0, keepdim=True)
        rstd = (var + 0.1).rsqrt()
        y = elements.spread(exact_w, x) * (wide - mean) * rstd + elements.spread(exact_b, x)
        exact = torch.autograd.grad(y, (wide, exact_w, exact_b), grad.double())
        ours, *moments = positions.over_channels(x, w, b, 0.1)
        by = rstd.max().item() * 3  # what roundings are multiplied by, with weights and gradients of up to 3
        close(ours, y.detach(), scale=by)
        for moment, wanted in zip(moments, (mean, rstd)):
            assert moment.shape == wanted.shape and moment.dtype == torch.float32
            close(moment, wanted.detach())
        dx, *found = positions.over_channels_gradients(grad, x, w, *moments)
        close(dx, exact[0], scale=by)
        for sums, wanted in zip(found, exact[1:]):
            close(sums, wanted, scale=by * x[:, 0].numel() ** 0.5)
        for result in (ours, dx):
            assert result.dtype == dtype and elements.memory_format(result) == elements.memory_format(x)
    assert launched == ['_over_channels', '_over_channels_gradients'] * 2
    kernels.sizes.cache_clear()


@pytest.mark.parametrize(
    'center, gate, shape, layout, dtype',
    [(1, 2, *case, dtype) for case in POSITIONS for dtype in (torch.float32, torch.bfloat16)]
    + [(*parts, *case, torch.float32) for parts in ((0, 1), (1, 0), (2, 1)) for case in POSITIONS[3:7:3]]
    + [(2, 2, *POSITIONS[0], torch.float16)],
)
def test_calibrations_equal_their_formulas(launched, monkeypatch, center, gate, shape, layout, dtype):
    monkeypatch.setattr(kernels, '_MOST_SPLITS', 2)
    kernels.sizes.cache_clear()
    x, grad = tensor(shape, dtype, layout, 1), tensor(shape, dtype, layout)
    a, *of_gate = torch.randn(5, shape[1])
    what = calibrations.Calibration(center, gate, 0.1, a if center else None, *(of_gate if gate else ()))
    own, mean, scale, bias, dmean, dvar = torch.randn(6, *shape[:2])

    def check(function, *args):
        found, wanted = (function(*values) for values in (args, in_double(args)))
        for ours, exact in zip(*(value if isinstance(value, tuple) else (value,) for value in (found, wanted))):
            if ours is None:  # what is not computed, or kept by ATen alone
                continue
            rounded = torch.finfo(dtype).eps if ours.dtype == dtype else 0
            off = (ours.double() - exact).abs()
            assert (off <= rounded * exact.abs() + 1e-5 * exact.abs().max().clamp(min=1)).all(), (
                function.__name__,
                off.max(),
            )
            if ours.shape == x.shape:
                assert ours.dtype == dtype and elements.memory_format(ours) == elements.memory_format(x)

    check(calibrations.calibrated_moments, x, what)
    check(calibrations.calibrated, x, what, None, mean, scale, bias)
    check(calibrations.calibrated_sums, x, what, grad, own, mean, scale)
    check(calibrations.calibrated_gradient, x, what, grad, None, None, own, mean, scale, dmean, dvar)
    first = '_moments_of_z' if center else '_moments'
    names = [name for name in launched if name != '_join']
    assert names == [first, '_calibrate', '_calibration_sums', '_calibration_gradient']
    kernels.sizes.cache_clear()


@pytest.mark.parametrize('shape, layout', [((1, 3, 50, 53), torch.contiguous_format), ((1, 5, 20, 10), LAST)])
@pytest.mark.parametrize('most', [2, 256])
def test_offsets_of_a_thousand_deviations(everywhere, monkeypatch, shape, layout, most):
    """Split in two, of several tiles each, and in as many as there are tiles."""
    monkeypatch.setattr(kernels, '_MOST_SPLITS', 2) if most == 2 else None
    monkeypatch.setattr(kernels, '_TILE', 512)
    check(tensor(shape, layout=layout, offset=1e3), tensor(shape, layout=layout), within(torch.float32, 1e3))


def test_a_constant_beside_a_far_value(everywhere):
    """Padding: the first tile knows nothing of the rest."""
    x = torch.zeros(1, 1, 100, 100)
    x[..., 30:, :] = 1e3 + torch.randn(70, 100)
    mean, var = moments(x)
    exact_var, exact = torch.var_mean(x.double().flatten(2), 2, correction=0)
    torch.testing.assert_close(mean.double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-5, atol=0)


def test_constant_rows_have_no_variance(everywhere):
    _, var = moments(torch.full((2, 3, 9, 9), 1234.567))
    assert (var >= 0).all() and var.max() < 1e-6


def test_what_is_not_a_number_stays_in_its_row(everywhere):
    x = torch.randn(2, 3, 7, 7)
    x[0, 1, 3, 3], x[1, 2, 0, 0] = float('nan'), float('inf')
    mean, var = moments(x)
    bad = torch.zeros(2, 3, dtype=torch.bool)
    bad[0, 1] = bad[1, 2] = True
    assert torch.equal(~var.isfinite(), bad) and torch.equal(~mean.isfinite(), bad)


@pytest.mark.parametrize(
    'make',
    [
        lambda: torch.randn(5, 4, 6, 7)[1:4],
        lambda: torch.randn(3, 9, 6, 7)[:, 2:6],
        lambda: torch.randn(3, 9, 6, 7)[:, ::2],
        lambda: torch.randn(3, 4, 6, 7)[..., 1:-1, ::2],
        lambda: torch.randn(3, 4, 1, 1).expand(3, 4, 6, 7),
        lambda: torch.randn(1, 4, 6, 7).expand(3, 4, 6, 7),
        lambda: torch.randn(3, 6, 7, 4).permute(0, 3, 1, 2),
        lambda: torch.randn(4, 3, 6, 8).transpose(0, 1),
        lambda: torch.randn(3, 4, 6, 7).mT,
        lambda: torch.randn(3 * 4 * 4 * 4 + 1)[1:].view(3, 4, 4, 4),
        lambda: torch.randn(3, 1, 6, 7).contiguous(memory_format=LAST),
        lambda: torch.randn(1, 4, 1, 7).contiguous(memory_format=LAST),
        lambda: torch.randn(3, 4, 6, 7, dtype=torch.complex64).conj().imag,
        lambda: torch.randn(2, 4, 2, 3, 4).transpose(2, 4),
    ],
)
def test_views_and_gradients_of_any_strides(everywhere, make):
    x = make()
    for grad in (make(), torch.ones(()).expand(x.shape), tensor(x.mT.shape).mT):
        check(x, grad, within(torch.float32))


def test_a_gradient_of_another_type_is_taken_in_that_of_the_tensor(everywhere):
    x, grad = tensor((2, 4, 4, 4), torch.bfloat16), torch.randn(2, 4, 4, 4)
    total, _ = kernels.reduce(kernels.tiling(x), grad, x, torch.zeros(2, 4))
    torch.testing.assert_close(total, grad.bfloat16().float().sum((2, 3)))


@pytest.mark.parametrize('shape', [(0, 3, 4, 4), (2, 3, 0, 4), (0, 3), (4, 3), (2, 0, 3, 3)])
def test_without_positions_or_elements_nothing_is_launched(launched, shape):
    x = torch.randn(shape, requires_grad=True)
    normalize(x, lambda m, v, _: (m, v, 1.0, 0.0), 1e-3).sum().backward()
    assert x.grad.shape == x.shape and not launched


def test_doubles_and_integers_of_the_plane(launched):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    moments(x)
    assert not launched
    x = x.float()
    y = kernels.complete(kernels.tiling(x), x, (), torch.zeros(3, dtype=torch.float64), torch.ones(2, 3), 1)
    torch.testing.assert_close(y, x + 1)


def test_the_same_bits_each_time(everywhere):
    x, grad = torch.randn(1, 2, 70, 70), torch.randn(1, 2, 70, 70)
    first, second = ((*moments(x), *elements.reduce(grad, x, torch.zeros(1, 2))) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_two_devices_are_a_clear_error(everywhere):
    with pytest.raises(RuntimeError, match=r'same device: .*\(2, 3, 4, 4\).* on cpu, .* on meta'):
        elements.complete(torch.randn(2, 3, 4, 4), (), 0.0, torch.ones(3, device='meta'), 0.0)


# the plane, and every norm

#: Blends of all parts, by a layer that has them.
BLENDS = [
    dict(type='SN'),
    dict(type='SN', batch_stat=False, affine=False),
    dict(type='SN', hard=True),
    dict(type='SN', unbiased=True),
    dict(type='RBN'),
    dict(type='RBN', scale=False),
    dict(type='RBN', scale_stat='channel_std'),
    dict(type='RBN', center=False, affine=False),
    dict(type='GBGN', channel_groups=1),
    dict(type='GBGN', channel_groups=4, affine=False),
    dict(type='BRN', warmup=0),
    dict(type='BRN', warmup=10, affine=False),
    dict(type='IBN'),
    dict(type='IBN', momentum=None),
]


def in_double(values):
    return tree_map_only(torch.Tensor, lambda t: t.double() if t.is_floating_point() else t.clone(), values)


@pytest.mark.parametrize(
    'cfg, samples, training',
    [(cfg, 5, True) for cfg in BLENDS]
    + [(dict(type=name), 5, False) for name in ('SN', 'RBN', 'IBN')]
    + [(dict(type='RBN'), 1, True)],
)
def test_blends_equal_their_formulas(launched, monkeypatch, cfg, samples, training):
    monkeypatch.setattr(plane_kernels, '_ROW', 8)  # several tiles, the last of which is not full
    monkeypatch.setattr(plane_kernels, '_SAMPLES', 4)
    plane = samples, 12
    layer = randomized(build(cfg, plane[1])).train(training)
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked += 5
    what = layer.blend(torch.randn(*plane, 3, 3))
    m, v = torch.randn(plane) * 2 + 10, torch.rand(plane) + 0.5
    exact_args = in_double((m, v, what, 9 * plane[0], layer.eps))
    found, exact = blends.coefficients(m, v, what, 9 * plane[0], layer.eps), blends.coefficients(*exact_args)
    assert '_blend' in launched
    total, centered = torch.randn(plane), torch.randn(plane)
    what, exact_what = what._replace(renorm=None), exact_args[2]._replace(renorm=None)
    saved, exact_saved = (m, v, *found[:3], *found[4:]), (*exact_args[:2], *exact[:3], *exact[4:])
    gradients = blends.coefficient_gradients(total, centered, what, what.ratios is not None, *saved)
    exact_gradients = blends.coefficient_gradients(
        total.double(), centered.double(), exact_what, what.ratios is not None, *exact_saved
    )
    assert launched[-1] == '_gradients'
    pairs = [
        *zip(found, exact),
        *zip(gradients, exact_gradients),
        *zip(*map(tree_leaves, (what.batch, exact_what.batch))),
    ]
    for ours, wanted in pairs:
        assert_near(ours, wanted)


PLACE = 2**48 + 2**24 - 1  # exact in float64 alone


@torch.no_grad()
def over_ranks(whats, moments, sums, positions, eps):
    """What each rank finds that has samples, as a list; the ranks' messages are passed on by hand."""
    groups = whats[0].groups or moments[0][0].shape[1]
    full = [(what, *own, length) for what, own, length in zip(whats, moments, positions) if len(own[0])]
    counts = [m.numel() // groups * length for _, m, _, length in full]
    told = torch.zeros(len(moments), 2 + 3 * groups, dtype=torch.float64)
    rows = [row for row, (m, _) in zip(told, moments) if len(m)]
    for (what, m, v, _), count, row in zip(full, counts, rows):
        blends.tell_statistics(m, v, what, count, PLACE, parts_of(row))
        assert row[:2].tolist() == [PLACE, len(m)] and row[-groups:].tolist() == [count] * groups
    found = [blends.coefficients(m, v, what, count, eps, told) for (what, m, v, _), count in zip(full, counts)]
    saved = [(m, v, *own[:3], *own[4:]) for (_, m, v, _), own in zip(full, found)]
    whats = [what._replace(renorm=None) for what, *_ in full]
    sums = [own for own in sums if len(own[0])]
    added = torch.zeros(1 + 2 * groups, dtype=moments[0][0].dtype)
    for what, own, kept in zip(whats, sums, saved):
        message = torch.full_like(added, float('nan'))
        parts = message.split([1, groups, groups])
        blends.tell_gradients(*own, what, *kept[:5], *kept[-2:-1], 4095, parts)
        added += message
    assert added[0] == 4095 * len(full)
    return [
        (*own, *blends.coefficient_gradients(*two, what, what.ratios is not None, *kept, added[1:].chunk(2)))
        for what, two, kept, own in zip(whats, sums, saved, found)
    ]


def assert_near(ours, wanted):
    assert torch.is_tensor(ours) == torch.is_tensor(wanted)
    if torch.is_tensor(ours):
        off = (ours.double() - wanted).abs().max()
        assert off <= 3e-6 * (10 + wanted.abs().max()), f'{off:.3g} of {wanted.abs().max():.3g}'


@pytest.mark.parametrize('positions', [(9, 9, 0, 9), (4, 100, 0, 9)], ids=['equal', 'of different sizes'])
@pytest.mark.parametrize(
    'cfg', [cfg for cfg in BLENDS if cfg['type'] != 'SN' or len(cfg) == 1 or 'unbiased' in cfg], ids=described
)
def test_ranks_together_have_the_statistics_and_the_gradients_of_the_whole(launched, monkeypatch, cfg, positions):
    """By kernels what ATen has in float64; which is what one rank has, where all samples have the same weight."""
    monkeypatch.setattr(plane_kernels, '_ROW', 8)
    monkeypatch.setattr(plane_kernels, '_SAMPLES', 2)
    samples, channels = [5, 1, 0, 3], 12
    layer = randomized(build(cfg, channels)).train()
    layer.num_batches_tracked += 5
    what, whole = layer.blend(torch.randn(2, channels, 3, 3)), (sum(samples), channels)
    m, v, total, centered = torch.randn(whole) * 2 + 10, torch.rand(whole) + 0.5, torch.randn(whole), torch.randn(whole)
    moments, sums = (list(zip(*(plane.split(samples) for plane in planes))) for planes in ((m, v), (total, centered)))
    exact = in_double((what, m, v, total, centered))
    whats, exact_whats = ([tree_map_only(torch.Tensor, torch.clone, w) for _ in samples] for w in (what, exact[0]))
    found = over_ranks(whats, moments, sums, positions, layer.eps)
    assert {'_tell_statistics', '_blend', '_tell_gradients', '_gradients'} <= set(launched)
    launched.clear()
    wanted = over_ranks(exact_whats, in_double(moments), in_double(sums), positions, layer.eps)
    assert not launched
    for pair in zip(
        tree_leaves((found, [w.batch for w in whats])), tree_leaves((wanted, [w.batch for w in exact_whats]))
    ):
        assert_near(*pair)
    if len({length for length in positions if length}) > 1:
        return
    what, m, v, total, centered = exact
    own = blends.coefficients(m, v, what, positions[0] * m.numel() // (what.groups or channels), layer.eps)
    kept, plain = (m, v, *own[:3], *own[4:]), what._replace(renorm=None)
    own += blends.coefficient_gradients(total, centered, plain, what.ratios is not None, *kept)
    of_ranks, (start, end) = list(zip(*wanted)), (len(own) - 9, len(own) - 7)
    for i in (0, 1, 2, *range(start, end)):  # mean, rstd, scale, dm and dv
        ours = torch.cat([part.expand(size, -1) for part, size in zip(of_ranks[i], (5, 1, 3), strict=True)])
        torch.testing.assert_close(ours, own[i].expand(whole))
    for parts, expected in zip(of_ranks[end:], own[end:], strict=True):  # of what is learned
        if expected is not None:
            torch.testing.assert_close(sum(parts), expected)
    for ours, expected in zip(exact_whats[0].batch[:3], what.batch[:3]):
        torch.testing.assert_close(ours, expected)


def test_a_sample_that_overflows_is_alone(everywhere):
    """With IN there is nothing that others have to do with it."""
    layer, x = build(dict(type='IBN')), torch.randn(3, 8, 4, 4)
    layer.weight.data[:] = 1
    x[1] = float('inf')
    y = layer(x)
    assert y[[0, 2], :4].isfinite().all() and not y[1].isfinite().any()


def compare_with_aten(launched, layer, x, grad, view=lambda base: base):
    """Compare what a layer makes of a view of x by kernels, and all that it changes, with what it makes on ATen."""
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    results = []
    for enabled in (False, True):
        use_triton(enabled)
        launched.clear()
        layer.load_state_dict(state)
        found = []
        for training in (True, False):
            layer.train(training).zero_grad()
            leaf = x.clone().requires_grad_()
            y = layer(view(leaf))
            y.backward(grad)
            assert elements.memory_format(y) == elements.memory_format(view(leaf))
            assert elements.memory_format(leaf.grad) == elements.memory_format(x)
            found += [y.detach(), leaf.grad, *(p.grad.clone() for p in layer.parameters() if p.grad is not None)]
        found += [value.clone() for value in layer.state_dict().values()]
        results.append(found)
    for aten, ours in zip(*results):
        tolerance = dict(rtol=2e-4, atol=2e-4) if x.dtype == torch.float32 else dict(rtol=3e-2, atol=6e-2)
        torch.testing.assert_close(ours, aten, **tolerance)


@pytest.mark.parametrize('cfg', EVERY, ids=described)
@pytest.mark.parametrize('dtype, layout', [(torch.float32, torch.contiguous_format), (torch.bfloat16, LAST)])
def test_every_norm_is_that_of_aten(launched, cfg, dtype, layout):
    layer = randomized(build(cfg))
    compare_with_aten(launched, layer, tensor((4, 8, 3, 5), dtype, layout, 2), tensor((4, 8, 3, 5), dtype, layout))
    if 'spatial' in str(cfg):
        assert {'_moments_of_z', '_calibrate', '_calibration_sums', '_calibration_gradient'} <= set(launched)
        return
    by_element = cfg['type'] == 'BGN' and layer.num_groups == 16
    if (
        cfg['type'] not in ('GW', 'BW', 'SyncBW', 'SW', 'SyncSW', 'PN', 'FrozenBN', 'FRN') and not by_element
    ):  # which are not on the plane
        assert {'_moments', '_affine', '_reduce', '_input_gradient'} <= set(launched)
    if cfg in BLENDS:
        assert {'_blend', '_gradients'} <= set(launched)


@pytest.mark.parametrize('name', ['SN', 'RBN', 'BGN', 'BRN'])
@pytest.mark.parametrize(
    'shape', [(6, 8), (6, 8, 5), (3, 8, 2, 3, 4), (5, 8, 1, 1), (1, 8, 4, 4), (3, 8, 1, 7), (2, 2, 1, 1, 9), (70, 6)]
)
def test_tensors_of_any_number_of_axes_and_axes_of_1(launched, name, shape):
    layer = randomized(build(dict(type=name), shape[1]))
    compare_with_aten(launched, layer, tensor(shape, offset=2), tensor(shape))
    assert {'_blend', '_gradients'} <= set(launched)


@pytest.mark.parametrize('name', ['SN', 'BRN'])
@pytest.mark.parametrize(
    'shape, view',
    [
        ((6, 8, 3, 5), lambda base: base[1:5]),
        ((4, 16, 3, 5), lambda base: base[:, 4:12]),
        ((4, 8, 6, 7), lambda base: base[..., 1:-2, ::3]),
        ((4, 8, 1, 1), lambda base: base.expand(4, 8, 3, 5)),
        ((1, 8, 3, 5), lambda base: base.expand(4, 8, 3, 5)),
        ((8, 4, 5, 3), lambda base: base.transpose(0, 1).mT),
    ],
)
def test_slices_and_expanded_tensors(launched, name, shape, view):
    layer, base = randomized(build(dict(type=name))), tensor(shape, offset=2)
    compare_with_aten(launched, layer, base, tensor(view(base).shape), view)
    assert {'_moments', '_blend', '_affine', '_reduce', '_gradients', '_input_gradient'} <= set(launched)


@triton.jit
def _offset(out, sample, row, position, rows, length, LAST: tl.constexpr, UNIT: tl.constexpr):
    one = tl.arange(0, 1)
    at, exists = kernels._tile(sample, row + one, position + one, rows, length, LAST, UNIT)
    tl.store(out + one[:, None] + one[None, :], at, exists)


@pytest.mark.parametrize(
    'last, sample, row, position, rows, length',
    [
        (False, 0, 2**20 + 1, 4095, 2**21, 4096),  # many planes
        (False, 0, 4, 2**29 - 1, 8, 2**29),  # large ones
        (True, 5, 63, 2**25 - 1, 64, 2**25),
        (True, 2**20, 1000, 3, 1024, 4),
    ],
)
def test_offsets_of_tensors_beyond_32_bits(last, sample, row, position, rows, length):
    found = torch.zeros(1, 1, dtype=torch.int64)
    _offset[(1,)](found, sample, row, position, rows, length, last, 1)
    exact = (sample * length + position) * rows + row if last else row * length + position
    assert found.item() == exact > 2**31


def test_what_is_too_large_for_32_bit_counts_runs_on_aten():
    for shape in ((1, 1, 2**29 + 1), (2**15, 2**14 + 1, 1), (2**29 + 1, 1)):
        x = torch.empty(1).expand(shape)
        assert kernels.variant(x, ()) is position_kernels.variant(x, ()) is None
        if x.dim() == 2:
            assert plane_kernels.variant(x, (x, x, build(dict(type='SN')).blend(torch.empty(2, 8, 2)), 1, 1e-5)) is None


def test_samples_and_channels_that_are_too_many_for_kernels_over_channels_run_on_aten():
    for shape, fits in (((9, 8, 2**27), True), ((9, 8, 2**27 + 1), False), ((1, 4096, 2), True), ((1, 4097, 2), False)):
        assert (position_kernels.variant(torch.empty(1).expand(shape), ()) is not None) == fits


def test_derivatives_of_higher_order_are_those_of_aten(everywhere):
    x = torch.randn(2, 3, 4, 5, requires_grad=True)

    def second():
        y = normalize(x, lambda m, v, _: (0.5 * m, v, 1.0, 0.0), 1e-3)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), x)[0]

    ours = second()
    use_triton(False)
    torch.testing.assert_close(ours, second(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('training, cfg', [(True, cfg) for cfg in BLENDS] + [(False, dict(type='SN'))])
def test_layers_under_inference_mode(launched, cfg, training):
    """With an input that wants a gradient, which no graph follows."""
    layer, x = build(cfg).train(training), torch.randn(4, 8, 3, 5, requires_grad=True)
    before = layer.num_batches_tracked.item()
    with torch.inference_mode():
        y = layer(x)
    assert '_blend' in launched and y.is_inference() and not y.requires_grad
    tracks = training and BN in layer.blend(x).scopes
    assert layer.num_batches_tracked == before + tracks
    layer(x).sum().backward()  # it still trains
    assert x.grad is not None


def test_gradients_under_inference_mode(everywhere):
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    with torch.inference_mode():
        y = normalize(x, lambda m, v, _: (m, v, 1.0, 0.0), 1e-3)
    assert y.is_inference() and y.mean().abs() < 1e-5


# who runs


@pytest.mark.parametrize(
    'reads',
    [
        lambda x: torch.func.vmap(lambda x: moments(x)[0])(x[None])[0],
        lambda x: torch.compile(lambda x: moments(x)[0], backend='eager', fullgraph=True)(x),
        lambda x: torch.func.jvp(lambda x: moments(x)[0], (x,), (torch.ones_like(x),))[0],
        lambda x: torch.fx.experimental.proxy_tensor.make_fx(lambda x: moments(x)[0])(x)(x),
    ],
)
def test_who_reads_operations_gets_those_of_aten(launched, reads):
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(reads(x), x.mean((2, 3)))
    assert not launched


def test_forward_mode_gets_its_derivative(launched):
    x = torch.randn(2, 3, 4, 4)
    with torch.autograd.forward_ad.dual_level(), torch.no_grad():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        mean = elements.take_means(dual)
        tangent = torch.autograd.forward_ad.unpack_dual(mean).tangent
    torch.testing.assert_close(tangent, torch.ones(2, 3))
    assert not launched


def test_shapes_alone(launched):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        y = normalize(torch.randn(2, 3, 4, 4), lambda m, v, _: (m, v, 1.0, 0.0), 1e-3)
    assert y.shape == (2, 3, 4, 4)
    y = normalize(torch.randn(2, 3, 4, 4, device='meta'), lambda m, v, _: (m, v, 1.0, 0.0), 1e-3)
    assert y.shape == (2, 3, 4, 4) and not launched


def test_switched_off(launched, monkeypatch):
    x = torch.randn(2, 3, 4, 4)
    use_triton(False)
    moments(x)
    assert not launched
    use_triton(True)
    moments(x)
    assert launched
    for value, enabled in (('0', False), ('1', True)):
        monkeypatch.setenv('MMNORM_TRITON', value)
        spec = util.spec_from_file_location('fresh', backends.__file__)
        fresh = util.module_from_spec(spec)
        spec.loader.exec_module(fresh)
        assert fresh._enabled is enabled


@pytest.fixture
def unchecked():
    with kernels_everywhere(checked=False):
        yield


@pytest.fixture
def one_rank(monkeypatch):
    """A process group of this rank alone, of which layers take it that there are more."""
    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(PlaneNorm, 'spans_ranks', lambda self: self.sync and self.training)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize('name', ['SyncSN', 'SyncRBN', 'SyncBGN', 'SyncEN'])
def test_layers_that_exchange_are_checked_before_too(one_rank, unchecked, name):
    """Neither a check nor anything else is an exchange that other ranks would wait for."""
    layers = [randomized(build(dict(type=name))), randomized(build(dict(type=name.removeprefix('Sync'))))]
    layers[1].load_state_dict(layers[0].state_dict())
    base, grad, found = tensor((4, 8, 3, 5), offset=2), tensor((4, 8, 3, 5)), []
    for layer in layers:
        use_triton(layer is layers[0])
        x = base.clone().requires_grad_()
        with (
            mock.patch.object(ranks, '_all_gather', wraps=ranks._all_gather) as gather,
            mock.patch.object(distributed, 'all_reduce', wraps=distributed.all_reduce) as reduce,
            mock.patch.object(backends, '_works', wraps=backends._works) as works,
        ):
            y = layer(x)
            y.backward(grad)
        assert gather.call_count == reduce.call_count == layer.sync
        checked = {call.args[1].__name__ for call in works.call_args_list}
        assert ({'tell_statistics', 'coefficients', 'tell_gradients', 'coefficient_gradients'} <= checked) == layer.sync
        found.append([y, x.grad, *(p.grad for p in layer.parameters()), *layer.buffers()])
    torch.testing.assert_close(*found, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    'shape, layout, dtype',
    [
        ((2, 3, 7, 7), torch.contiguous_format, torch.float32),
        ((1, 2, 5, 33), torch.contiguous_format, torch.bfloat16),
        ((2, 8, 4, 4), LAST, torch.float16),
    ],
)
def test_the_first_use_is_checked_and_changes_nothing(unchecked, shape, layout, dtype):
    layer, x = build(dict(type='SN'), shape[1]), tensor(shape, dtype, layout)
    generator = torch.get_rng_state()
    with mock.patch.object(backends, '_works', wraps=backends._works) as works:
        layer(x.requires_grad_()).sum().backward()
        assert {call.args[1].__name__ for call in works.call_args_list} == {
            'take_moments', 'coefficients', 'complete', 'reduce', 'coefficient_gradients', 'input_gradient'
        }  # fmt: skip
        works.reset_mock()
        layer(x)
        works.assert_not_called()
    assert torch.equal(torch.get_rng_state(), generator)
    assert layer.num_batches_tracked == 2


@pytest.mark.parametrize(
    'cfg, module, names',
    [
        (dict(type='PN'), position_kernels, {'over_channels', 'over_channels_gradients'}),
        (
            dict(type='RBN', center_stat='spatial_mean', scale_stat='spatial_std'),
            calibration_kernels,
            {'calibrated_moments', 'calibrated', 'calibrated_sums', 'calibrated_gradient'},
        ),
    ],
)
@pytest.mark.parametrize('shape', [(3, 8, 4, 4), (2, 5, 3, 3)])
def test_the_first_use_of_kernels_over_channels_is_checked(unchecked, cfg, module, names, shape):
    layer, x = build(cfg, shape[1]), torch.randn(shape, requires_grad=True)
    with mock.patch.object(backends, '_works', wraps=backends._works) as works:
        layer(x).sum().backward()
    assert {call.args[1].__name__ for call in works.call_args_list} == names
    for name in names:
        backends._checked.clear()
        kernel = getattr(module, name)

        def wrong(*args, kernel=kernel):
            return tree_map_only(torch.Tensor, lambda t: t * 1.001, kernel(*args))

        with mock.patch.object(module, name, wrong), pytest.raises(RuntimeError, match=f"kernel '{name}'"):
            layer(x).sum().backward()


@pytest.mark.parametrize('variant', [kernels.variant, position_kernels.variant])
@pytest.mark.parametrize('shape', [(2, 3, 7, 7), (2, 99, 70, 70), (5, 640, 1, 2), (2, 3, 5000), (2, 8, 3, 3, 30)])
@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('shift', [0, 1])
def test_what_is_checked_is_cut_as_the_tensor_is(variant, shape, last, shift):
    x = torch.empty(torch.Size(shape).numel() + shift)[shift:].view(shape)
    if last and len(shape) > 3:
        order = [0, *range(2, len(shape)), 1]
        x = x.view([shape[i] for i in order]).movedim(-1, 1)
    assert variant(backends._values(x, variant(x, ()))['x'], ()) == variant(x, ())


@pytest.mark.parametrize(
    'name, wrong',
    [
        ('coefficients', lambda *args: (1.001 * blend(*args)[0], *blend(*args)[1:])),
        (
            'coefficients',
            lambda parts, m, v, what, *args: blend(
                parts, m, v, what._replace(batch=tree_map_only(torch.Tensor, torch.clone, what.batch)), *args
            ),
        ),
        ('coefficient_gradients', lambda *args: (*gradients(*args)[:-1], torch.zeros(8))),
        ('take_moments', lambda tiles, x: (None, *(m * 1.001 for m in take_moments(tiles, x)[1:3]), None)),
        ('complete', lambda _, x, *args: torch.full_like(x, float('nan'))),
        ('reduce', lambda _, grad, x, own_mean: (grad.float().sum((2, 3)), (grad * x).float().sum((2, 3)))),
        ('input_gradient', lambda _, grad, x, own_mean, scale, *args: grad * elements.spread(scale, x)),
    ],
)
def test_a_kernel_that_is_wrong_is_an_error(unchecked, monkeypatch, name, wrong):
    monkeypatch.setattr(kernels if hasattr(kernels, name) else plane_kernels, name, wrong)
    layer, x = build(dict(type='RBN')), torch.randn(2, 8, 4, 4, requires_grad=True)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=rf"kernel '{name}'.* on cpu, .*PyTorch {torch.__version__[:4]}.*Triton"):
            layer(x).sum().backward()


take_moments = kernels.take_moments
blend, gradients = plane_kernels.coefficients, plane_kernels.coefficient_gradients


def test_what_cannot_be_compiled_runs_on_aten_and_is_said_once(unchecked, monkeypatch):
    monkeypatch.setattr(kernels, 'launch', mock.Mock(side_effect=PermissionError('no folder for the cache')))
    layer, x = build(dict(type='SN')), torch.randn(2, 8, 4, 4, requires_grad=True)
    with pytest.warns(UserWarning, match='PermissionError: no folder for the cache') as said:
        for _ in range(2):
            layer(x).sum().backward()
    assert len(said) == 1


@pytest.mark.parametrize(
    'module, reason',
    [(mock.Mock(__version__='3.5.1'), 'ImportError: Triton 3.5.1 is older than 3.6'), (None, 'ModuleNotFoundError')],
)
def test_without_a_triton_that_will_do_all_runs_on_aten_and_that_is_said_once(unchecked, monkeypatch, module, reason):
    monkeypatch.setitem(sys.modules, 'triton', module)
    backends._load.cache_clear()
    try:
        with pytest.warns(UserWarning, match=reason) as said:
            for _ in range(2):
                moments(torch.randn(2, 3, 4, 4))
        assert len(said) == 1
    finally:
        backends._load.cache_clear()


def test_no_check_while_a_graph_is_captured(launched, monkeypatch):
    monkeypatch.setattr(backends, '_is_capturing', lambda x: True)
    x = torch.randn(2, 3, 4, 4)
    moments(x)
    assert not launched
    monkeypatch.setattr(backends, '_is_capturing', lambda x: False)
    moments(x)
    assert launched
    launched.clear()
    monkeypatch.setattr(backends, '_is_capturing', lambda x: True)
    moments(x)
    assert launched


def test_no_warning_in_all_that(everywhere):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        moments(torch.randn(2, 3, 4, 4))
