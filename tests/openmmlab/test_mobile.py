"""XBN in MobileNetV2 and ShuffleNetV2, and our own ShuffleNetV2."""

import warnings
from collections import Counter

import pytest
import torch
from mmdet.registry import MODELS as DET
from mmengine.runner.checkpoint import load_state_dict
from mmseg.registry import MODELS as SEG
from torch import nn

from mmnorm.blocks import place_xbn
from mmnorm.norms import checks

# Of Table 2 of the MobileNetV2 paper: blocks of the seven stages
MOBILE_BLOCKS = (1, 2, 3, 4, 3, 3, 1)
MOBILE = dict(type='XBNMobileNetV2')
SHUFFLE = dict(type='XBNShuffleNetV2', widen_factor=0.5)


@pytest.fixture(autouse=True)
def forget_warnings(monkeypatch):
    monkeypatch.setattr(checks, '_warned', set())


def build(cfg, registry=DET, **kwargs):
    with torch.device('meta'):
        return registry.build(dict(cfg, **kwargs))


def kinds(backbone):
    return Counter(type(module) for module in backbone.modules() if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)))


@pytest.mark.parametrize('registry, depthwise, norms', [(DET, 'depthwise_conv', 52), (SEG, 'conv', 51)])
def test_mobilenet_after_each_depthwise_convolution(registry, depthwise, norms):
    backbone = build(MOBILE, registry)  # mmdet's ends with a convolution more
    blocks = [f'layer{stage}.{i}' for stage, number in enumerate(MOBILE_BLOCKS, start=1) for i in range(number)]
    # in mmseg the convolutions of a block have numbers; the first block has no expansion in front
    parts = ['conv.0', *['conv.1'] * 16] if depthwise == 'conv' else [depthwise] * 17
    assert backbone.xbn_layers == [f'{block}.{part}.bn' for block, part in zip(blocks, parts)]
    assert kinds(backbone) == {nn.GroupNorm: 17, nn.BatchNorm2d: norms - 17}
    for name in backbone.xbn_layers:
        norm, conv = (backbone.get_submodule(f'{name.removesuffix(".bn")}.{part}') for part in ('bn', 'conv'))
        assert norm.num_groups == 16 and conv.groups == norm.num_channels > 1


@pytest.mark.parametrize(
    'xbn, placed',
    [
        (dict(every=2), 8),
        (dict(position=3), 17),
        (dict(position=(2, 3)), 34),
        (dict(position=1, stages=range(1, 7)), 16),
        (dict(stages=(0, 6)), 2),
        (dict(stem=True), 18),
        (dict(scope='full'), 52),
        (dict(scope='full', stages=(1,)), 6),
        (dict(scope='full', stages=(1,), stem=True), 7),
    ],
)
def test_arguments_of_the_placement(xbn, placed):
    backbone = build(MOBILE, xbn=dict(xbn, norm_cfg=dict(type='GN', num_groups=8)))
    assert len(set(backbone.xbn_layers)) == placed == kinds(backbone)[nn.GroupNorm]
    assert ('conv1.bn' in backbone.xbn_layers) == ('stem' in xbn or placed == 52)


@pytest.mark.parametrize(
    'xbn, message',
    [
        (dict(position=1), r'layer1.0 \(InvertedResidual\) has no norm at position 1'),
        (dict(stages=(7,)), r'stages must be indices below 7, got \(7,\)'),
        (
            dict(norm_cfg=dict(type='GN', num_groups=64)),
            r'xbn: layer2.0.depthwise_conv.bn: GN: num_groups=64 does not divide 96 channels',
        ),
    ],
)
def test_bad_arguments_are_named(xbn, message):
    with pytest.raises(ValueError, match=message):
        build(MOBILE, xbn=xbn)


@pytest.mark.parametrize('width, groups', [(0.5, 8), (1.0, 29), (1.5, 8), (2.0, 61)])
def test_shufflenet_after_each_depthwise_convolution(width, groups):
    backbone = build(SHUFFLE, SEG, widen_factor=width)
    expected = [
        f'layers.{stage}.{i}.{part}.bn'
        for stage, number in enumerate((4, 8, 4))
        for i in range(number)
        for part in (['branch1.0'] if i == 0 else []) + ['branch2.1']
    ]
    assert backbone.xbn_layers == expected and len(expected) == 13 + 2 * 3
    # the stem, three norms of each block, and two of each projection
    assert kinds(backbone) == {nn.GroupNorm: 19, nn.BatchNorm2d: 1 + 16 * 3 + 3 * 2 - 19}
    found = [backbone.get_submodule(name) for name in expected]
    assert [norm.num_groups for norm in found] == [min(groups, norm.num_channels) for norm in found]
    assert found[1].num_groups == groups


@pytest.mark.parametrize('cfg, host', [(MOBILE, 'MobileNetV2'), (SHUFFLE, 'ShuffleNetV2')])
def test_hosts_checkpoint_loads_key_by_key(cfg, host):
    theirs = DET.build(dict(cfg, type=host))
    backbone = DET.build(cfg)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_state_dict(backbone, theirs.state_dict(), strict=True)
    state = theirs.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    assert place_xbn(theirs, norm_cfg=backbone.xbn_norm_cfg) == backbone.xbn_layers


@pytest.mark.parametrize(
    'cfg, registry, frozen',
    [
        (MOBILE, DET, ('conv1', 'layer1', 'layer2')),
        (MOBILE, SEG, ('conv1', 'layer1', 'layer2')),
        (SHUFFLE, DET, ('conv1', 'layers.0', 'layers.1')),
    ],
)
def test_frozen_stages_stay_frozen_and_others_train(cfg, registry, frozen):
    backbone = build(cfg, registry, frozen_stages=2)
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != f'{name}.'.startswith(tuple(f'{part}.' for part in frozen)), name
    backbone.train()
    modes = {name: module.training for name, module in backbone.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert modes.pop('conv1.bn') == (cfg is MOBILE)  # mmdet's and mmseg's own habit
    for name, training in modes.items():
        assert training != name.startswith(frozen), name


@pytest.mark.parametrize('cfg, registry', [(MOBILE, DET), (MOBILE, SEG), (SHUFFLE, SEG)])
def test_trains(cfg, registry):
    backbone = registry.build(cfg)
    backbone.init_weights()
    backbone.train()
    outs = backbone(torch.randn(2, 3, 64, 64))
    sum(out.square().mean() for out in outs).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.parametrize(
    'width, parameters',
    [
        # torchvision's published counts of the classifiers less their last layer
        (0.5, 1366792 - 1025 * 1000),
        (1.0, 2278604 - 1025 * 1000),
        (1.5, 3503624 - 1025 * 1000),
        (2.0, 7393996 - 2049 * 1000),
    ],
)
def test_shufflenet_is_as_large_as_published(width, parameters):
    backbone = build(dict(type='ShuffleNetV2', widen_factor=width, out_indices=(0, 1, 2, 3)))
    assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters


def test_shufflenets_layers_are_named_as_openmmlabs():
    names = build(dict(type='ShuffleNetV2', out_indices=(3,))).state_dict()
    for name, shape in (
        ('conv1.conv.weight', (24, 3, 3, 3)),
        ('conv1.bn.running_var', (24,)),
        ('layers.0.0.branch1.0.conv.weight', (24, 1, 3, 3)),
        ('layers.0.0.branch1.1.bn.bias', (58,)),
        ('layers.0.1.branch2.0.conv.weight', (58, 58, 1, 1)),
        ('layers.1.7.branch2.1.conv.weight', (116, 1, 3, 3)),
        ('layers.2.0.branch2.2.bn.weight', (232,)),
        ('layers.3.conv.weight', (1024, 464, 1, 1)),
    ):
        assert names[name].shape == shape
    assert 'layers.3.conv.weight' not in build(dict(type='ShuffleNetV2')).state_dict()


def test_shufflenet_shuffles_the_channels_of_its_branches():
    block = DET.build(dict(type='ShuffleNetV2', widen_factor=0.5)).layers[0][1].eval()
    x = torch.randn(2, 48, 5, 7)
    joined = torch.cat((x[:, :24], block.branch2(x[:, 24:])), 1)
    shuffled = joined.view(2, 2, 24, 5, 7).transpose(1, 2).reshape(2, 48, 5, 7)
    torch.testing.assert_close(block(x), shuffled, rtol=0, atol=0)


@pytest.mark.parametrize(
    'cfg, sizes',
    [
        (dict(), [(48, 8), (96, 4), (192, 2)]),
        (dict(strides=(2, 2, 1), dilations=(1, 1, 2)), [(48, 8), (96, 4), (192, 4)]),
        (dict(strides=(2, 1, 1), dilations=(1, 2, 4), out_indices=(1, 3)), [(96, 8), (1024, 8)]),
    ],
)
def test_shufflenets_outputs(cfg, sizes):
    outs = SEG.build(dict(type='ShuffleNetV2', widen_factor=0.5, **cfg))(torch.randn(2, 3, 64, 64))
    assert [tuple(out.shape) for out in outs] == [(2, channels, side, side) for channels, side in sizes]


def test_shufflenet_recomputes_to_the_same_gradients():
    x = torch.randn(2, 3, 32, 32)
    backbone = DET.build(dict(type='ShuffleNetV2', widen_factor=0.5))
    again = DET.build(dict(type='ShuffleNetV2', widen_factor=0.5, with_cp=True))
    again.load_state_dict(backbone.state_dict())
    for network in (backbone, again):
        network.train()(x)[-1].square().mean().backward()
    for (name, parameter), other in zip(backbone.named_parameters(), again.parameters()):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name)


def test_shufflenets_norm_eval():
    backbone = build(dict(type='ShuffleNetV2', norm_eval=True)).train()
    assert not any(module.training for module in backbone.modules() if isinstance(module, nn.BatchNorm2d))
    assert backbone.training and backbone.layers[0].training


@pytest.mark.parametrize(
    'cfg, message',
    [
        (dict(widen_factor=0.75), r'widen_factor must be one of \(0.5, 1.0, 1.5, 2.0\), got 0.75'),
        (dict(out_indices=(4,)), r'out_indices must be among 0 to 3, got \(4,\)'),
        (dict(frozen_stages=4), 'frozen_stages must be -1 to 3, got 4'),
    ],
)
def test_what_shufflenet_does_not_have(cfg, message):
    with pytest.raises(ValueError, match=message):
        build(dict(type='ShuffleNetV2', **cfg))
