"""The backbone that the converter prints: pasted into a config, it computes what the source computed."""

import re

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS

from mmnorm.convert import convert_file
from mmnorm.engine import read_checkpoint

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')
NARROW = dict(base_channels=8, stem_channels=8)
THREE_STAGES = dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2))
IN, GN32 = dict(type='IN'), dict(type='GN', num_groups=32)


def xbn(depth=50, **placed):
    return dict(type='XBNResNet', depth=depth, **NARROW, **(dict(xbn=placed) if placed else {}))


def resnet(norm, **arguments):
    return dict(type='ResNet', depth=18, **NARROW, norm_cfg=dict(type=norm, **arguments))


def name_of(cfg):
    """A case by what is special in it."""
    return ' '.join(f'{key}={value}' for key, value in cfg.items() if key not in NARROW)


@pytest.fixture
def save(tmp_path):
    """Save a network of a config whose norms have something of everything; return it and the file."""

    def run(cfg):
        torch.manual_seed(0)
        network = MODELS.build(dict(cfg))
        network.eval()
        weights = network.state_dict()
        for name, value in weights.items():
            if name.endswith('.mean_batch_size'):
                value.fill_(4)
            elif value.is_floating_point() and value.dim() < 4:
                value.copy_(torch.rand_like(value) / 2 + 0.25)
        network.load_state_dict(weights)  # EN makes its alpha and beta
        torch.save(network.state_dict(), tmp_path / 'source.pth')
        return network, str(tmp_path / 'source.pth')

    return run


def pasted(report):
    """What a model has after the printed line is pasted into it."""
    (line,) = re.findall(r'^    (backbone=.*)$', report.text(), re.MULTILINE)
    return eval(f'dict({line})')['backbone']


def assert_computes(report, cfg, network):
    """What is printed is this config, and computes what the network does, to the bit."""
    backbone = pasted(report)
    assert {key: value for key, value in backbone.items() if key != 'init_cfg'} == cfg
    ours = MODELS.build(backbone)
    ours.init_weights()
    ours.eval()
    x = torch.randn(2, cfg.get('in_channels', 3), 64, 64)
    for found, expected in zip(ours(x), network(x), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    'cfg',
    [
        xbn(),
        xbn(18),
        xbn(18, position=2),
        xbn(stem=True),
        xbn(position=1, stem=True),
        xbn(position=3),
        xbn(position=(1, 3), every=2),
        xbn(every=2),
        xbn(every=4),
        xbn(every=8),
        xbn(stages=(2, 3)),
        xbn(every=2, stages=(0, 2)),
        xbn(stem=True, stages=()),
        xbn(norm_cfg=IN, stem=True),
        xbn(position=1, norm_cfg=IN),
        xbn(norm_cfg=dict(type='GW', num_groups=8)),
        xbn(norm_cfg=dict(type='GW', num_groups=4, iterations=3)),
        xbn(18, norm_cfg=dict(type='GW', num_groups=4, method='zca')),
        xbn(norm_cfg=dict(type='PN')),
        xbn(scope='full'),
        xbn(18, scope='full'),
        xbn(norm_cfg=IN, scope='full'),
        xbn(stages=(1, 3), scope='full'),
        xbn(stem=True, stages=(0,), scope='full'),
        xbn(stages=(0, 1, 2, 3), scope='full'),
        dict(xbn(18, norm_cfg=dict(type='GN', num_groups=32)), base_channels=96, stem_channels=96),
        dict(xbn(stem=True), deep_stem=True),
        dict(xbn(every=2), **THREE_STAGES),
        dict(xbn(norm_cfg=IN, scope='full'), avg_down=True),
        dict(xbn(stem=True), type='XBNResNeXt', groups=4, base_width=2),
        resnet('SN'),
        resnet('SN', groups=2),
        resnet('SN', hard=True),
        resnet('SN', unbiased=True),
        resnet('SyncSN', batch_stat=False),
        resnet('RBN'),
        resnet('RBN', center=False),
        resnet('RBN', center_stat='channel_std', scale_stat='spatial_mean'),
        resnet('SyncRBN', scale=False),
        resnet('EN'),
        resnet('EN', mode='simple'),
        resnet('EN', mode='offline'),
        resnet('SyncEN'),
        resnet('FrozenBN'),
        resnet('BRN'),
        dict(type='ResNet', depth=18, **NARROW),
        dict(resnet('SN'), deep_stem=True, avg_down=True, in_channels=4),
        dict(resnet('SN'), stem_channels=64),
    ],
    ids=name_of,
)
@torch.no_grad()
def test_what_is_printed_computes_what_the_source_computed(save, tmp_path, cfg):
    network, source = save(cfg)
    norm = 'XBN' if 'XBN' in cfg['type'] else cfg.get('norm_cfg', {}).get('type', 'BN')
    report = convert_file(source, tmp_path / 'out.pth', norm)
    assert_computes(report, cfg, network)
    assert read_checkpoint(tmp_path / 'out.pth')['meta']['mmnorm']['backbone'] == cfg


def test_only_what_differs_from_the_defaults_is_printed(tmp_path):
    torch.save(ResNet(18).state_dict(), tmp_path / 'source.pth')
    for norm, stated in (
        ('BN', "type='ResNet', depth=18"),
        ('XBN', "type='XBNResNet', depth=18"),
        ('SN', "type='ResNet', depth=18, norm_cfg=dict(type='SN')"),
    ):
        out = tmp_path / f'{norm}.pth'
        text = convert_file(str(tmp_path / 'source.pth'), out, norm).text()
        line = f"    backbone=dict({stated}, init_cfg=dict(type='Pretrained', checkpoint='{out}'))"
        assert text.splitlines()[-1] == line


def test_the_prefix_is_printed_with_its_dot(save, tmp_path):
    network, source = save(resnet('SN'))
    report = convert_file(source, tmp_path / 'out.pth', 'SN', prefix='backbone')
    assert 'backbone.conv1.weight' in read_checkpoint(tmp_path / 'out.pth')['state_dict']
    ours = MODELS.build(pasted(report))
    ours.init_weights()
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize('norm_cfg', [dict(type='IN', affine=True), dict(type='GN', num_groups=32)], ids=name_of)
def test_what_tensors_do_not_tell_is_said(save, tmp_path, norm_cfg):
    report = convert_file(save(xbn(18, norm_cfg=norm_cfg))[1], tmp_path / 'out.pth', 'XBN')
    assert 'xbn' not in pasted(report)
    assert report.notes[0].startswith("its batch-free norms are taken to be GN with 64 groups, as the authors': GW ")


@torch.no_grad()
def test_detectors_of_xbns_authors(save, tmp_path):
    """maskrcnn-benchmark: its names, frozen BNs without eps and counter, GN with 32 groups."""
    cfg = dict(
        xbn(stem=True, norm_cfg=dict(type='GN', num_groups=32)), norm_cfg=dict(type='FrozenBN', eps=0), base_channels=32
    )
    cfg['stem_channels'] = 32
    network, source = save(cfg)
    theirs = {
        f'module.backbone.body.{"stem." * key.startswith(("conv1", "bn1"))}{key}': value
        for key, value in network.state_dict().items()
        if 'num_batches' not in key
    }
    others = ['module.backbone.fpn.fpn_inner1.weight', 'module.rpn.head.conv.weight', 'module.roi_heads.box.fc6.bias']
    torch.save(dict(model={**theirs, **{key: torch.ones(3) for key in others}}, iteration=90000), source)
    report = convert_file(source, tmp_path / 'out.pth', 'XBN')
    assert report.layout == 'xbn-detection'
    assert_computes(report, cfg, network)


def test_in_without_tensors_is_said(save, tmp_path):
    report = convert_file(save(xbn(norm_cfg=IN))[1], tmp_path / 'out.pth', 'XBN')
    assert report.notes[0].startswith("its batch-free norms have no tensors: the authors' IN, without affine, is")
    assert report.layout == 'xbn' and "the authors' release" in report.text() and 'BSD' not in report.text()


def test_in_is_found_in_a_detector(save, tmp_path):
    cfg = xbn(position=1, norm_cfg=IN)  # so that layer1.0.bn1 has no tensors
    network, source = save(cfg)
    torch.save({f'backbone.{key}': value for key, value in network.state_dict().items()}, source)
    report = convert_file(source, tmp_path / 'out.pth', 'XBN')
    assert report.layout == 'mmdet' and {**cfg, 'init_cfg': pasted(report)['init_cfg']} == pasted(report)


def test_fewer_stages_are_said(save, tmp_path):
    cfg = dict(type='ResNet', depth=18, **NARROW, **THREE_STAGES)
    report = convert_file(save(cfg)[1], tmp_path / 'out.pth', 'SN')
    assert report.network == 'SN ResNet-18 (3 of 4 stages, width 8)' and 'layer4' in report.notes[0]


def test_placements_that_no_arguments_give(save, tmp_path):
    network, source = save(xbn(stem=True))
    weights = network.state_dict()
    weights.update({f'layer2.1.bn2.running_{what}': torch.ones(16) for what in ('mean', 'var')})
    torch.save(weights, source)
    with pytest.raises(
        ValueError,
        match=r'batch-free norms are 16 \(bn1, .*, those of XBN ResNet-50 \(width 8\) 17 '
        r'\(bn1, .*; for another network give its --config$',
    ):
        convert_file(source, tmp_path / 'out.pth', 'XBN')


@pytest.mark.parametrize(
    'change, message',
    [
        # wide_resnet50_2: twice as wide inside as ResNet-50
        (
            dict(conv1=(32, 16, 1, 1), conv2=(32, 32, 3, 3), conv3=(64, 32, 1, 1)),
            'its bottlenecks are 32 channels wide, where .* have 16: mmdet and mmseg have no Wide ResNet; '
            '.* its --config',
        ),
        (dict(downsample=(3, 3)), 'tensors differ in shape: size mismatch .*; for another network give its --config'),
    ],
)
def test_other_networks_need_their_config(save, tmp_path, change, message):
    network, source = save(dict(type='ResNet', depth=50, base_channels=16, stem_channels=16))
    weights = network.state_dict()
    for name, shape in change.items():
        (key,) = [key for key in weights if key.startswith(f'layer1.0.{name}.') and weights[key].dim() == 4]
        weights[key] = torch.zeros(shape)
    torch.save(weights, source)
    with pytest.raises(ValueError, match=message):
        convert_file(source, tmp_path / 'out.pth', 'SN')


def of_xbns_authors(name):
    """A name of mmdet's MobileNetV2 as XBN's authors have it: blocks counted on, and what is in a block."""
    firsts = dict(zip(range(1, 8), (1, 2, 4, 7, 11, 14, 17)))
    name = re.sub(r'^layer(\d)\.(\d)\.', lambda m: f'features.{firsts[int(m[1])] + int(m[2])}.', name)
    name = re.sub(r'^conv(\d)\.', lambda m: f'features.{18 * (int(m[1]) - 1)}.', name)
    parts = ('depthwise', 'linear') if name.startswith('features.1.') else ('expand', 'depthwise', 'linear')
    for number, part in enumerate(parts):
        name = name.replace(f'{part}_conv.conv', f'conv.{3 * number}').replace(
            f'{part}_conv.bn', f'conv.{3 * number + 1}'
        )
    return re.sub(r'^(features\.\d+)\.(conv|bn)\.(?!\d)', lambda m: f'{m[1]}.{int(m[2] == "bn")}.', name)


@pytest.mark.parametrize('theirs', [True, False], ids=['authors', 'mmdet'])
@pytest.mark.parametrize(
    'cfg',
    [
        dict(type='MobileNetV2'),
        dict(type='MobileNetV2', widen_factor=0.5),
        dict(type='MobileNetV2', widen_factor=0.5, norm_cfg=dict(type='SN')),
        dict(type='MobileNetV2', widen_factor=0.5, norm_cfg=dict(type='RBN', scale=False)),
        dict(type='XBNMobileNetV2', xbn=dict(norm_cfg=dict(type='GN', num_groups=16))),
    ],
    ids=name_of,
)
@torch.no_grad()
def test_mobilenet(save, tmp_path, cfg, theirs):
    network, source = save(cfg)
    if theirs:
        state = {of_xbns_authors(name): value for name, value in network.state_dict().items()}
        assert {'features.0.0.weight', 'features.1.conv.4.bias', 'features.17.conv.6.weight'} < state.keys()
        torch.save({'state_dict': {**state, 'classifier.weight': torch.ones(10, 1280)}}, source)
    norm = 'XBN' if 'XBN' in cfg['type'] else cfg.get('norm_cfg', {}).get('type', 'BN')
    report = convert_file(source, tmp_path / 'out.pth', norm)
    assert report.layout == ('xbn-mobilenet' if theirs else 'mmdet')
    assert_computes(report, cfg, network)


def test_shufflenet_of_xbns_authors_is_refused(tmp_path):
    """Its projections' GNs have groups of channels that lie elsewhere after mmpretrain's shuffle."""
    names = ('first_conv.0.weight', 'features.0.branch_main.0.weight', 'features.0.branch_proj.0.weight')
    torch.save({name: torch.ones(24, 1, 3, 3) for name in names}, tmp_path / 'source.pth')
    with pytest.raises(
        ValueError,
        match=r"the XBN authors' ShuffleNetV2, .* there is no such network here \(features.0.branch_proj.0.weight\)",
    ):
        convert_file(str(tmp_path / 'source.pth'), tmp_path / 'out.pth', 'XBN')
