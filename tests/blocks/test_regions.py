"""Images of several sizes in one batch, each normalized as if it were alone."""

import pytest
import torch
from torch import nn

from mmnorm import SN, valid_regions
from mmnorm.blocks import padding_readers
from mmnorm.blocks.regions import _ImageByImage
from mmnorm.norms import NORMS, checks

from ..norms.cases import CHANNELS, EVERY, build, described, randomized

BATCH = (16, 20)
SIZES = [(16, 12), (16, 20), (8, 20)]
MAPS = [(8, 6), (8, 10), (4, 10)]  # of stride 2


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(checks, '_warned', set())


def padded(shape=(CHANNELS, 8, 10), maps=MAPS, padding=7.0, **kwargs):
    """A batch with maps of images, and what pads them."""
    x = torch.full((len(maps), *shape), padding, **kwargs)
    for sample, (height, width) in zip(x, maps):
        sample[..., :height, :width] = torch.randn(*shape[:-2], height, width)
    return x


def alone(layer, x, maps=MAPS):
    return [layer(x[n : n + 1, ..., :height, :width])[0] for n, (height, width) in enumerate(maps)]


def assert_as_alone(y, parts, maps=MAPS, **tolerance):
    for sample, part, (height, width) in zip(y, parts, maps):
        torch.testing.assert_close(sample[..., :height, :width], part, **tolerance)
        outside = sample.clone()
        outside[..., :height, :width] = 0
        assert not outside.any()


@pytest.mark.filterwarnings('ignore:EN evaluates as BN', 'ignore:SyncEN evaluates as BN')
@pytest.mark.parametrize('cfg', EVERY, ids=described)
@torch.no_grad()
def test_each_image_is_normalized_as_if_it_were_alone(cfg):
    layer, x = randomized(build(cfg)).eval(), padded()
    parts, before = alone(layer, x), layer(x)
    kept = all(
        torch.allclose(sample[:, :height, :width], part, atol=1e-4)
        for sample, part, (height, width) in zip(before, parts, MAPS)
    )
    assert kept is not layer.sees_padding
    with valid_regions(layer, SIZES, BATCH):
        y = layer(x)
    if layer.sees_padding:
        assert_as_alone(y, parts)
    else:
        torch.testing.assert_close(y, before)
    torch.testing.assert_close(layer(x), before)


@pytest.mark.parametrize(
    'layer, reads',
    [
        (nn.GroupNorm(4, CHANNELS), True),
        (nn.InstanceNorm2d(CHANNELS, affine=True), True),
        (nn.InstanceNorm2d(CHANNELS, track_running_stats=True), False),
        (nn.BatchNorm2d(CHANNELS), False),
        (nn.LayerNorm(10), False),
    ],
)
@torch.no_grad()
def test_stock_norms(layer, reads):
    layer, x = layer.eval(), padded()
    parts, before = alone(layer, x) if reads else None, layer(x)
    with valid_regions(layer, SIZES, BATCH):
        y = layer(x)
    assert list(padding_readers(layer)) == [''] * reads
    if reads:
        assert_as_alone(y, parts)
    else:
        torch.testing.assert_close(y, before)


@pytest.mark.parametrize('layer', [nn.BatchNorm2d(CHANNELS, track_running_stats=False).eval(), SN(CHANNELS).train()])
def test_what_normalizes_by_the_batch_is_left_and_named(layer):
    model, x = nn.Sequential(layer, nn.GroupNorm(2, CHANNELS)), padded()
    expected = layer(x)
    named = pytest.warns(UserWarning, match='1 layers normalize by the statistics of the whole batch.*first: 0')
    with named, valid_regions(model, SIZES, BATCH):
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize('name', ['SN', 'GW', 'EN', 'RBN'])
def test_gradients_are_those_of_the_image_alone(name):
    layer = randomized(build(dict(type=name, **dict(batch_size=2) if name == 'EN' else {}))).double().eval()
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    x = padded(dtype=torch.float64)
    gradients = []
    for regions in (True, False):
        x = x.detach().requires_grad_()
        with valid_regions(layer, SIZES, BATCH):
            parts = [layer(x)] if regions else None
        parts = parts or alone(layer, x)
        sum(part.sin().sum() for part in parts).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)
    assert not gradients[0][0, :, :, 6:].any()


@pytest.mark.parametrize('name', ['SN', 'GBGN', 'GW'])
@torch.no_grad()
def test_formats_and_types_stay(name):
    arguments = dict(batch_groups='sample', channel_groups=2) if name == 'GBGN' else {}
    layer = randomized(build(dict(type=name, **arguments))).eval()
    for x, tolerance in (
        (padded().contiguous(memory_format=torch.channels_last), {}),
        (padded().bfloat16(), dict(rtol=0.02, atol=0.05)),
        (padded((CHANNELS, 3, 8, 10)), {}),
    ):
        parts = alone(layer, x)
        with valid_regions(layer, SIZES, BATCH):
            y = layer(x)
        assert_as_alone(y, parts, **tolerance)
        assert y.stride() == x.stride() and y.dtype == x.dtype


def network(norm):
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in ((3, CHANNELS), (CHANNELS, CHANNELS), (CHANNELS, CHANNELS)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), randomized(norm(outputs)), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize('compiled', [False, True])
@torch.no_grad()
def test_a_network_of_them_gives_what_it_gives_alone(compiled):
    """Zeros outside are the zero padding of the convolutions behind: nothing of the neighbors is left."""
    model = network(SN)
    run = torch.compile(model, backend='eager') if compiled else model
    x = padded((3, 64, 96), [(64, 32), (64, 96)], padding=0.0)
    part, before = model(x[:1, :, :, :32]), run(x)
    with valid_regions(model, [(64, 32), (64, 96)], (64, 96)):
        y = run(x)
    torch.testing.assert_close(y[:1, :, :, :4], part)
    torch.testing.assert_close(y[1:], before[1:])
    torch.testing.assert_close(run(x), before)
    assert not torch.allclose(before[:1, :, :, :4], part, atol=0.01)


@pytest.mark.parametrize(
    'size, batch, length, expected',
    [
        (96, 160, 5, 3),  # stride 32
        (96, 160, 3, 2),  # 64, as of RetinaNet's P6
        (96, 160, 2, 1),  # 128
        (32, 33, 9, 8),  # 4, and no multiple of it
        (33, 65, 17, 9),
        (96, 160, 320, 192),  # upsampled
        (96, 160, 1, 1),
    ],
)
def test_the_stride_of_a_map_is_found(recwarn, size, batch, length, expected):
    layer = _ImageByImage('norm', None, [(size, batch), (batch, batch)], (batch, batch))
    assert layer.regions(length, length) == [(expected, length), (length, length)]
    assert not recwarn.list


def test_maps_of_other_strides():
    layer = _ImageByImage('norm', None, [(28, 42), (42, 42)], (42, 42))
    assert layer.regions(3, 3) == [(2, 3), (3, 3)]  # patches of 14 pixels: exact
    with pytest.warns(UserWarning, match='the map of norm has no stride .* rounded up'):
        assert layer.regions(4, 4) == [(3, 4), (4, 4)]
    # rows and columns have one stride between them: 40 x 40 of 160 x 96 is no map of it
    layer = _ImageByImage('grid', None, [(96, 96), (160, 96)], (160, 96))
    with pytest.warns(UserWarning, match='the map of grid has no stride'):
        assert layer.regions(40, 40) == [(24, 40), (40, 40)]


@torch.no_grad()
def test_inputs_that_are_not_maps_of_the_images():
    layer = randomized(build(dict(type='SN'))).eval()
    rois, pooled, sequence = torch.randn(5, CHANNELS, 7, 7), torch.randn(3, CHANNELS), torch.randn(3, CHANNELS, 80)
    expected = [layer(x) for x in (pooled, rois, sequence)]
    model = nn.ModuleDict(dict(head=layer))
    with valid_regions(model, SIZES, BATCH):
        torch.testing.assert_close(layer(pooled), expected[0])
        with pytest.warns(UserWarning, match='the input of head is not one map for each image'):
            torch.testing.assert_close(layer(rois), expected[1])
        torch.testing.assert_close(layer(sequence), expected[2])
    with valid_regions(model, SIZES, BATCH, leave=[layer]):
        x = padded()
        y = layer(x)
    torch.testing.assert_close(y, layer(x))


def test_errors_and_what_comes_back():
    model = nn.Sequential(SN(CHANNELS), nn.GroupNorm(2, CHANNELS)).eval()
    own = model[1].forward = lambda x: x + 1
    for sizes in ([], [(16, 20), (17, 20)], [(0, 20)]):
        with pytest.raises(ValueError, match='sizes must have a height and width'), valid_regions(model, sizes, BATCH):
            pass
    refused = pytest.raises(RuntimeError, match='another such context')
    with refused, valid_regions(model, SIZES, BATCH), valid_regions(model, SIZES, BATCH):
        pass
    with pytest.raises(KeyError), valid_regions(model, SIZES, BATCH):
        raise KeyError
    assert 'forward' not in vars(model[0]) and model[1].forward is own
    with valid_regions(model, [BATCH] * 3, BATCH):
        assert 'forward' not in vars(model[0])


@pytest.mark.filterwarnings('ignore:EN evaluates as BN', 'ignore:SyncEN evaluates as BN')
@pytest.mark.parametrize('name', NORMS)
def test_every_norm_says_whether_it_sees_padding(name):
    layer = NORMS[name](CHANNELS).eval()
    assert isinstance(layer.sees_padding, bool)
    if hasattr(layer, 'running_mean') and name != 'FrozenBN':
        # statistics of the batch have its padding in them
        assert NORMS[name](CHANNELS, track_running_stats=False).eval().sees_padding
