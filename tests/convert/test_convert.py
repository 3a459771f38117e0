"""Checkpoints in the layouts of other code, converted, loaded strictly, and compared in what they compute."""

import argparse
import functools
import os
import re
import warnings

import pytest
import torch
from mmdet.models.backbones import ResNet, ResNetV1d, ResNeXt

from mmnorm.convert import convert_file, convert_norms
from mmnorm.convert.backbones import build_backbone
from mmnorm.engine import read_checkpoint
from mmnorm.norms import RBN, SN, SSN
from mmnorm.openmmlab.mmdet_models import XBNResNet

from . import networks
from .networks import WIDTH, forward, resnet50, with_classifier

X = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@pytest.fixture
def convert(tmp_path):
    """Save what a checkpoint holds, convert it, and return the report and the new state dict."""

    def run(checkpoint, norm, **options):
        number = len(list(tmp_path.glob('*.pth')))
        source, out = tmp_path / f'source_{number}.pth', tmp_path / f'out_{number}.pth'
        torch.save(checkpoint, source)
        report = convert_file(str(source), out, norm, **options)
        return report, read_checkpoint(out)['state_dict']

    return run


def bn_resnet50():
    return resnet50(lambda name, channels: networks.bn_tensors(channels))


@torch.no_grad()
def outputs(weights, host=ResNet, depth=50, **cfg):
    """What a backbone computes into which all of the weights, and no others, are loaded."""
    model = host(depth, base_channels=WIDTH, **cfg).double()
    model.eval()
    assert weights.keys() <= model.state_dict().keys()
    model.load_state_dict(weights, strict=True)
    return model(X)


def assert_same(ours, theirs, tolerance=1e-9):
    for ours_of_stage, theirs_of_stage in zip(ours, theirs, strict=True):
        assert (ours_of_stage - theirs_of_stage).abs().max() <= tolerance * theirs_of_stage.abs().max()


@pytest.mark.parametrize('leaf, norm', [('bn_weight', 'BCN'), ('instance_channels', 'IBN')])
def test_norms_that_have_bns_tensors_and_are_not_bn_are_refused(convert, leaf, norm):
    weights = bn_resnet50() | {f'layer1.0.bn1.{leaf}': torch.ones(1)}
    with pytest.raises(
        ValueError, match=f"its network has {norm}, whose tensors are named like BN's but mean something"
    ):
        convert(weights, 'RBN')


@pytest.mark.parametrize('norm', ['RBN', 'IEBN', 'SN', 'SSN', 'EN', 'BN'])
def test_bn_to_another_norm_and_back_computes_the_same(convert, norm):
    bn = bn_resnet50()
    report, weights = convert(with_classifier(bn), norm)
    assert report.layout == 'torchvision' and report.dropped == {'ImageNet classifier': ['fc.weight', 'fc.bias']}
    assert report.norms == {f'BN -> {norm}': 53} and list(report.mapped) == [key for key in weights if key in bn]
    expected = forward(bn, X, networks.bn)
    assert_same(outputs(weights, norm_cfg=dict(type=norm)), expected)
    gated = norm in ('RBN', 'IEBN')
    if gated:  # said in the file: it does not matter how the layer takes BN checkpoints
        assert_same(outputs(weights, norm_cfg=dict(type=norm, fold_bn=False)), expected)
    report, back = convert(weights, 'BN')
    assert report.layout == dict(RBN='rbn', BN='torchvision').get(norm, 'torchvision' if norm == 'EN' else 'mmdet')
    assert back.keys() == bn.keys()
    for key, value in back.items():
        torch.testing.assert_close(value, bn[key], rtol=1e-15 if gated else 0, atol=0)
    assert_same(outputs(back), expected)


def test_float32_is_as_near_as_its_rounding(convert):
    bn = {key: value.float() if value.is_floating_point() else value for key, value in bn_resnet50().items()}
    expected = forward({key: value.double() for key, value in bn.items()}, X, networks.bn)
    for norm in ('RBN', 'SN'):
        weights = convert(bn, norm)[1]
        if norm == 'SN':
            assert torch.equal(weights['bn1.mean_weight'].softmax(0), torch.tensor([0.0, 0.0, 1.0]))
        model = ResNet(50, base_channels=WIDTH, norm_cfg=dict(type=norm))
        model.load_state_dict(weights)
        model.eval()
        with torch.no_grad():
            assert_same([y.double() for y in model(X.float())], expected, 1e-5)


@pytest.mark.parametrize(
    'layout, name, first',
    [
        ('sn', lambda key: f'module.{key.replace("bn", "sn")}', 'module.layer1.0.sn1.weight'),
        (
            'sn-segmentation',
            lambda key: (
                key.replace('bn', 'sn')
                if 'layer' in key
                else f'layer0.{0 if "conv" in key else 1}.' + key.partition('.')[2]
            ),
            'layer0.1.mean_weight',
        ),
        (
            'sn-detectron',
            lambda key: detectron(key, 'Conv_Body.conv_body.', 'Conv_Body.conv_body.'),
            'Conv_Body.conv_body.res5.2.sn3.running_var',
        ),
        (
            'sn-detectron',
            lambda key: detectron(key, 'Conv_Body.', 'Box_Head.'),
            'Box_Head.res5.0.downsample.1.mean_weight',
        ),
    ],
    ids=['classifier', 'segmenter', 'detector, FPN', 'detector, C4'],
)
def test_sn_of_the_authors(convert, layout, name, first):
    sn = resnet50(lambda _, channels: networks.sn_tensors(channels))
    theirs = {name(key): value for key, value in sn.items()}
    assert first in theirs
    heads = {
        'sn': ['module.fc.weight'],
        'sn-segmentation': ['cls.0.weight', 'aux.1.mean_weight'],
        'sn-detectron': [
            'Conv_Body.conv_top.1.mean_weight',
            'Conv_Body.posthoc_modules.0.0.weight',
            'RPN.FPN_RPN_conv.weight',
            'Box_Outs.cls_score.bias',
            'Mask_Head.conv_fcn.0.weight',
        ],
    }
    theirs.update({key: torch.ones(3) for key in heads[layout]})
    report, weights = convert(
        dict(model='resnetv1sn50', state_dict=theirs) if layout != 'sn-detectron' else dict(model=theirs), 'SN'
    )
    assert report.layout == layout and report.norms == {'SN -> SN': 53}
    assert report.backbone['norm_cfg'] == dict(
        type='SN', **({} if layout == 'sn' else dict(momentum=0.003)), unbiased=True
    )
    dropped = [key for keys in report.dropped.values() for key in keys]
    assert sorted(dropped) == sorted(key.removeprefix('module.') for key in heads[layout])
    assert len(report.mapped) + len(dropped) == len(theirs)
    # as the authors' code computes it: by unbiased variances, which at the 2 x 2 positions of this image is much
    ours = outputs(weights, norm_cfg=report.backbone['norm_cfg'])
    assert_same(ours, forward(sn, X, functools.partial(networks.sn, correction=1)))
    assert not torch.allclose(ours[-1], forward(sn, X, networks.sn)[-1], rtol=1e-2)
    assert not report.notes


@pytest.mark.parametrize(
    'cfg', [{}, dict(tracked='covariance', channels_per_group=4, iterations=7), dict(channels_per_group=1)], ids=str
)
def test_bw_from_bn_and_as_it_is(convert, tmp_path, cfg):
    bn, norm_cfg = bn_resnet50(), dict(type='BW', **cfg)
    config = tmp_path / 'config.py'
    config.write_text(
        "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\ncustom_imports = dict(imports=['mmnorm'])\n"
        f'model = dict(backbone=dict(base_channels=8, stem_channels=8, norm_cfg={norm_cfg}, init_cfg=None), '
        'neck=dict(in_channels=[32, 64, 128, 256]))\n'
    )
    report, weights = convert(bn, 'BW', config=str(config))
    assert report.norms == {'BN -> BW': 53} and 'taken to be uncorrelated' in report.notes[0]
    trained = ResNet(50, base_channels=WIDTH, norm_cfg=norm_cfg)
    trained.load_state_dict(weights)
    trained.double().eval()
    if not cfg.get('tracked'):
        with torch.no_grad():
            assert_same(trained(X), forward(bn, X, networks.bn), 1e-4)  # its matrices were made in float32
    trained.train()
    trained(X)
    source = trained.state_dict()
    report, weights = convert(source, 'BW')
    assert report.norms == {'BW -> BW': 53} and report.backbone['norm_cfg'] == norm_cfg
    trained.eval()
    with torch.no_grad():
        assert_same(outputs(weights, norm_cfg=norm_cfg), trained(X))
    with pytest.raises(ValueError, match=r'cannot become SN: BW, which mixes the channels of a group: 53 \(bn1, '):
        convert(source, 'SN')


@pytest.mark.parametrize('norm', ['CBN', 'MABN'])
def test_what_is_bn_in_evaluation_becomes_bn(convert, norm):
    source = ResNet(50, base_channels=WIDTH, norm_cfg=dict(type=norm, momentum=0.5)).double()
    source.train()
    source(X)
    report, weights = convert(source.state_dict(), 'BN')
    assert report.norms == {'BN -> BN': 53} and not any(key.endswith('.steps') for key in weights)
    source.eval()
    with torch.no_grad():
        assert_same(outputs(weights), source(X))


def sw_resnet50(stages='123', **options):
    """Under torchvision's names, and under those of SW's authors."""

    def tensors_of(name, channels):
        placed = name == 'bn1' or re.fullmatch(rf'layer[{stages}]\.[135]\.bn2', name)
        return networks.sw_tensors(channels, **options) if placed else networks.bn_tensors(channels)

    state = resnet50(tensors_of)
    sw = {key.rpartition('.')[0] for key in state if key.endswith('.sw_mean_weight')}
    return state, {
        key.replace('bn', 'sw') if key.rpartition('.')[0] in sw else key: value for key, value in state.items()
    }


@pytest.mark.parametrize('options', [{}, dict(tied=True), dict(stages='12', size=2)], ids=str)
def test_sw_of_the_authors(convert, options):
    state, theirs = sw_resnet50(**options)
    report, weights = convert(dict(state_dict={f'module.{k}': v for k, v in with_classifier(theirs).items()}), 'SW')
    stages = (0, 1) if options.get('stages') else (0, 1, 2)
    placed = 1 + sum(networks.BLOCKS[stage] // 2 for stage in stages)
    assert report.layout == 'sw' and report.norms == {'SW -> SW': placed, 'BN -> BN': 53 - placed}
    norm_cfg = dict(type='SW', channels_per_group=options.get('size', 4))
    xbn = dict(every=2, counted='stage', stages=stages, stem=True, norm_cfg=norm_cfg)
    assert report.backbone['xbn'] == xbn and report.backbone['type'] == 'XBNResNet'
    assert_same(outputs(weights, XBNResNet, xbn=xbn), forward(state, X, networks.bn_or_sw))
    assert "the 5 of the authors' scripts" in report.notes[0]
    # as a file of this package too, and as nothing else
    again = convert(weights, 'SyncSW')[0]
    xbn['norm_cfg'] = dict(norm_cfg, type='SyncSW')
    assert again.layout == 'mmdet' and again.backbone['xbn'] == xbn and not again.notes
    with pytest.raises(ValueError, match=rf'cannot become BN: SW, which mixes .*: {placed} \(bn1, layer1.1.bn2, '):
        convert(theirs, 'BN')


def test_what_does_not_become_sw(convert):
    state, theirs = sw_resnet50()
    for name, channels in (('layer2.1.bn2', 2 * WIDTH), ('layer3.5.bn2', 4 * WIDTH)):  # one block less has it
        other = {key: value for key, value in state.items() if not key.startswith(f'{name}.')}
        other.update({f'{name}.{leaf}': value for leaf, value in networks.bn_tensors(channels).items()})
        with pytest.raises(ValueError, match=rf'become SW: BN, which has no part of each instance: 1 \({name}\)$'):
            convert(other, 'SW')
    with pytest.raises(ValueError, match="only files of SW's authors, .*layer1.1.sw2.sw_mean_weight, and of networks"):
        convert(bn_resnet50(), 'SW')
    five = {k: torch.ones(5) if k.endswith('_weight') and '.sw_' in k else v for k, v in theirs.items()}
    with pytest.raises(ValueError, match="its SW has five members, to which the authors' code gives other ratios"):
        convert(five, 'SW')


def test_sw_everywhere(convert):
    source = ResNet(50, base_channels=WIDTH, norm_cfg=dict(type='SW', members=3, channels_per_group=4, iterations=4))
    report, weights = convert(source.state_dict(), 'SyncSW')
    assert report.norms == {'SW -> SW': 53}
    assert report.backbone['norm_cfg'] == dict(type='SyncSW', members=3, channels_per_group=4, iterations=4)


class Unpadded(ResNet):
    """With the max pooling of SSN's authors."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.maxpool = torch.nn.MaxPool2d(3, 2, ceil_mode=True)


def ssn_of_the_authors():
    return resnet50(lambda _, channels: networks.ssn_tensors(channels))


def test_ssn_of_the_authors(convert):
    ssn = ssn_of_the_authors()
    theirs = {f'module.{key.replace("bn", "sn")}': value for key, value in with_classifier(ssn).items()}
    report, weights = convert(dict(model='resnetv1ssn50', state_dict=theirs), 'SSN')
    assert report.layout == 'ssn' and report.norms == {'SSN -> SSN': 53} and weights['bn1.radius'].shape == ()
    assert len(report.dropped['flags of ratios that are 0 and 1']) == 106
    norm_cfg = dict(type='SSN', unbiased=True)
    assert report.backbone['norm_cfg'] == norm_cfg
    expected = forward(ssn, X, networks.ssn)
    assert_same(outputs(weights, norm_cfg=norm_cfg), expected)
    # which is not what the authors' ResNet computes, as the note says
    (note,) = report.notes
    assert 'backbone.maxpool = torch.nn.MaxPool2d(3, 2, ceil_mode=True) computes what they did' in note
    as_theirs = forward(ssn, X, networks.ssn, pool_padding=0)
    assert_same(outputs(weights, Unpadded, norm_cfg=norm_cfg), as_theirs)
    assert not torch.allclose(as_theirs[-1], expected[-1], rtol=1e-2)


def test_ssn_to_sn_and_back_computes_the_same(convert):
    ssn = ssn_of_the_authors()
    names = {key.replace('bn', 'sn'): value for key, value in ssn.items()}
    report, sn = convert(names, 'SN')
    norm_cfg = dict(type='SN', unbiased=True)
    assert report.norms == {'SSN -> SN': 53} and report.backbone['norm_cfg'] == norm_cfg
    expected = forward(ssn, X, networks.ssn)
    assert_same(outputs(sn, norm_cfg=norm_cfg), expected)
    report, again = convert(sn, 'SyncSSN')
    assert report.norms == {'SN -> SSN': 53} and report.layout == 'mmdet' and 'bn1.radius' in report.missing
    assert report.backbone['norm_cfg'] == dict(type='SyncSSN', unbiased=True)
    assert_same(outputs(again, norm_cfg=dict(type='SSN', unbiased=True)), expected)
    for leaf in ('mean_weight', 'var_weight'):
        torch.testing.assert_close(again[f'layer4.2.bn3.{leaf}'], ssn[f'layer4.2.bn3.{leaf}'], rtol=1e-14, atol=1e-14)


def test_ssn_that_ended_at_bn_becomes_bn(convert):
    ssn = {
        key: torch.eye(3)[2].double() if key.endswith(('mean_weight', 'var_weight')) else value
        for key, value in ssn_of_the_authors().items()
    }
    _, weights = convert({key.replace('bn', 'sn'): value for key, value in ssn.items()}, 'BN')
    assert_same(outputs(weights), forward(ssn, X, networks.ssn))
    # this radius ends at BN what a softmax would not, and what a smaller one leaves between
    ssn['bn1.mean_weight'], ssn['bn1.radius'] = torch.tensor([0.3, 0.3, 0.4]), torch.tensor([(2 / 3) ** 0.5])
    convert({key.replace('bn', 'sn'): value for key, value in ssn.items()}, 'BN')
    ssn['bn1.radius'] = torch.tensor([0.5])
    with pytest.raises(ValueError, match=r'become BN: SSN whose ratios do not select BN .*: 1 \(bn1\)$'):
        convert({key.replace('bn', 'sn'): value for key, value in ssn.items()}, 'BN')


@pytest.mark.parametrize('norm', ['FRN', 'ILM', 'BCN', 'bgn', 'PN', 'GW'])
def test_norms_that_no_tensors_make_compute_the_same_are_refused(convert, norm):
    with pytest.raises(ValueError, match=f'--to {norm.upper()}: no tensors make {norm.upper()} compute what a network'):
        convert(bn_resnet50(), norm)


def detectron(key, body, last_stage):
    key = key.replace('bn', 'sn')
    for ours, theirs in (('layer1', 'res2'), ('layer2', 'res3'), ('layer3', 'res4'), ('layer4', 'res5')):
        if key.startswith(ours):
            return (last_stage if ours == 'layer4' else body) + key.replace(ours, theirs)
    return f'{body}res1.{key}'


def test_unbiased_variances_of_sn_differ_by_the_order_of_one_over_the_positions():
    layer, state = SN(4).double().eval(), networks.sn_tensors(4)
    layer.load_state_dict(state)
    state = {key: value.double() for key, value in state.items()}
    differences = []
    for size in (7, 14, 28):
        x = torch.randn(2, 4, size, size, dtype=torch.float64)
        with torch.no_grad():
            ours = layer(x)
        torch.testing.assert_close(ours, networks.sn(state, x))
        differences.append(float((ours / networks.sn(state, x, correction=1) - 1).abs().median()) * size**2)
        assert differences[-1] < 1
    assert max(differences) < 2 * min(differences)


def test_running_var_of_the_authors_is_within_one_over_the_positions_of_ours():
    n, positions = 4, 49
    x = torch.randn(n, 6, 7, 7, dtype=torch.float64) + torch.tensor([0.0, 1, 2, 3]).view(4, 1, 1, 1)
    layer = SN(6, momentum=1.0).double()
    layer(x)
    # what the authors' code pools: unbiased variances of instances, then E[x^2] - mean^2
    mean = x.mean((2, 3))
    theirs = (x.var((2, 3)) + mean**2).mean(0) - mean.mean(0) ** 2
    ratio = theirs / layer.running_var
    assert (ratio < 1 + 1 / (positions - 1)).all() and (ratio > 1 - 1 / (n * positions)).all()
    assert not torch.allclose(ratio, torch.ones_like(ratio), rtol=1e-4)


def test_sn_weights_without_bn(convert):
    sn = resnet50(lambda _, channels: networks.sn_tensors(channels, sources=2))
    report, weights = convert({key.replace('bn', 'sn'): value for key, value in sn.items()}, 'SN')
    assert any('batch_stat=False' in note for note in report.notes)
    norm_cfg = dict(type='SN', batch_stat=False, unbiased=True)
    assert report.backbone['norm_cfg'] == norm_cfg
    expected = forward(sn, X, functools.partial(networks.sn, correction=1))
    assert_same(outputs(weights, norm_cfg=norm_cfg), expected)
    with pytest.raises(ValueError, match=r'SN whose ratios do not select BN .*: 53 \(bn1, layer1.0.bn1, '):
        convert({key.replace('bn', 'sn'): value for key, value in sn.items()}, 'BN')


def test_statistics_that_were_never_taken_are_told_of(convert):
    sn = resnet50(lambda _, channels: networks.sn_tensors(channels))
    sn = {key.replace('bn', 'sn'): value * 0 if 'running' in key else value for key, value in sn.items()}
    sn['layer1.0.sn1.batch_mean'] = torch.ones(1, WIDTH, 1)
    report = convert(sn, 'SN')[0]
    assert any(note.startswith('running_var of 53 layers is 0') for note in report.notes)
    assert any(note.startswith('batch_mean and batch_var') for note in report.notes)
    assert report.dropped == {'not in the new norm': ['layer1.0.sn1.batch_mean']}


def test_rbn_of_the_authors(convert):
    rbn = resnet50(lambda _, channels: networks.rbn_tensors(channels))
    # as their training script writes it
    report, weights = convert(dict(model=with_classifier(rbn), epoch=99, args=argparse.Namespace(lr=0.1)), 'RBN')
    assert report.layout == 'rbn' and weights['layer1.0.bn1.center_weight'].shape == (WIDTH,)
    assert_same(outputs(weights, norm_cfg=dict(type='RBN')), forward(rbn, X, networks.rbn))


def test_xbn_of_the_authors(convert):
    def tensors_of(name, channels):
        batch_free = name == 'bn1' or name.endswith('.bn2')
        return networks.gn_tensors(channels) if batch_free else networks.bn_tensors(channels)

    xbn = resnet50(tensors_of)
    theirs = {f'module.{key}': value for key, value in with_classifier(xbn).items()}
    theirs['module.last_bn.weight'] = torch.ones(32 * WIDTH)
    report, weights = convert(dict(state_dict=theirs), 'XBN')
    assert report.layout == 'xbn' and report.norms == {'batch-free -> batch-free': 17, 'BN -> BN': 36}
    assert_same(outputs(weights, XBNResNet, xbn=dict(stem=True)), forward(xbn, X, networks.bn_or_gn))
    for lost in ('bn1', 'layer1.1.bn2'):
        damaged = {key: value for key, value in xbn.items() if not key.startswith(f'{lost}.')}
        with pytest.raises(ValueError, match=f'missing 2 of 267 tensors; first: {lost}.weight'):
            convert(damaged, 'XBN')
    with pytest.raises(ValueError, match=r'cannot become BN: batch-free, .*--to XBN.*: 17 \(bn1, layer1.0.bn2, '):
        convert(dict(state_dict=theirs), 'BN')


def ibn_resnet50(stages='123'):
    return resnet50(
        lambda name, channels: (
            networks.ibn_tensors(channels)
            if name.endswith('.bn1') and name[len('layer')] in stages
            else networks.bn_tensors(channels)
        )
    )


def test_ibn_of_the_authors(convert):
    theirs = ibn_resnet50()
    report, weights = convert(with_classifier(theirs), 'IBN')
    assert report.layout == 'ibn' and report.norms == {'BN -> BN': 40, 'IBN -> IBN': 13} and not report.missing
    assert report.mapped['layer3.5.bn1.bias'] == 'layer3.5.bn1.IN.bias and layer3.5.bn1.BN.bias'
    assert report.dropped == {'ImageNet classifier': ['fc.weight', 'fc.bias']}
    placed = dict(position=1, stages=(0, 1, 2), norm_cfg=dict(type='IBN'))
    assert_same(outputs(weights, XBNResNet, xbn=placed), forward(theirs, X, networks.bn_or_ibn))
    # which half is which, ours of BN's names do not say: nothing else takes it, and it takes nothing else
    with pytest.raises(ValueError, match=r'cannot become BN: IBN, of which half .*: 13 \(layer1.0.bn1, layer1.1.bn1, '):
        convert(theirs, 'BN')
    with pytest.raises(ValueError, match='not in the layout ibn'):
        convert(bn_resnet50(), 'IBN', layout='ibn')
    with pytest.raises(ValueError, match="only files of IBN-Net's authors, .*layer1.0.bn1.IN.weight, become IBN"):
        convert(bn_resnet50(), 'IBN')


def test_ibn_fits_the_config_of_its_row_or_not(convert, tmp_path):
    config = tmp_path / 'narrow.py'
    config.write_text(
        "_base_ = 'mmnorm::xbn/faster_rcnn_ibn_r50.py'\nmodel = dict(backbone=dict(base_channels=8, "
        'stem_channels=8), neck=dict(in_channels=[32, 64, 128, 256]))\n'
    )
    report, _ = convert(ibn_resnet50(), 'IBN', config=str(config))
    assert report.norms['IBN -> IBN'] == 13
    with pytest.raises(ValueError, match=r'become IBN: BN, which has no part of each instance: 6 \(layer3.0.bn1, '):
        convert(ibn_resnet50(stages='12'), 'IBN', config=str(config))


def test_bn_to_xbn_drops_statistics_of_the_batch_free_only(convert):
    bn = bn_resnet50()
    report, weights = convert(bn, 'XBN')
    assert report.norms == {'BN -> BN': 37, 'BN -> batch-free': 16} and 'live BNs' in report.notes[0]
    assert set(bn) - set(weights) == set(report.dropped['not in the new norm'])
    # what the backbone makes of the BN checkpoint itself
    assert_same(outputs(weights, XBNResNet), outputs(bn_checkpoint_in_xbn(bn), XBNResNet))


def bn_checkpoint_in_xbn(bn):
    model = XBNResNet(50, base_channels=WIDTH).double()
    model.load_state_dict(bn)
    return model.state_dict()


@pytest.mark.parametrize('norm', ['SN', 'XBN', 'RBN'])
@pytest.mark.parametrize(
    'host, cfg, name',
    [
        (ResNet, dict(depth=18, base_channels=8), 'ResNet-18 (width 8)'),
        (ResNet, dict(depth=101, base_channels=4), 'ResNet-101 (width 4)'),
        (
            ResNet,
            dict(depth=50, base_channels=8, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,)),
            'ResNet-50 (3 of 4 stages, width 8)',
        ),
        (ResNet, dict(depth=50, base_channels=8, deep_stem=True, stem_channels=16), 'ResNet-50 (deep stem, width 8)'),
        (ResNetV1d, dict(depth=50, base_channels=8), 'ResNet-50 (deep stem, width 8)'),
        (ResNeXt, dict(depth=50, base_channels=8, groups=4, base_width=2), 'ResNeXt-50 4x2d (width 8)'),
    ],
    ids=['18', '101', 'three stages', 'V1c', 'V1d', 'ResNeXt'],
)
def test_backbones_are_found_by_their_shapes(convert, host, cfg, name, norm):
    state = host(**cfg).state_dict()
    report, weights = convert(state, norm)
    assert report.network == f'{norm} {name}' and all(key in state for key in report.mapped.values())


@pytest.mark.parametrize(
    'cfg',
    [
        dict(type='ResNetV1c', depth=18, base_channels=8, stem_channels=8),
        dict(type='ResNetV1d', depth=50, base_channels=8, stem_channels=8),
        dict(type='MobileNetV2', widen_factor=0.25),
    ],
    ids=lambda cfg: cfg['type'],
)
@torch.no_grad()
def test_classifiers_of_mmpretrain(convert, cfg, tmp_path):
    """For a backbone of mmdet, which has other names, and, by a config, for one of mmpretrain's own."""
    registry = pytest.importorskip('mmpretrain.registry').MODELS
    theirs = registry.build(cfg).double()
    theirs.eval()
    for norm in theirs.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    checkpoint = {f'backbone.{key}': value for key, value in theirs.state_dict().items()}
    report, weights = convert(dict(state_dict=checkpoint | {'head.fc.weight': torch.zeros(2, 2)}), 'SN')
    assert report.layout == 'mmpretrain' and report.dropped == {'not part of the backbone': ['head.fc.weight']}
    assert report.mapped.keys() <= weights.keys() and set(report.mapped.values()) == checkpoint.keys()
    ours = build_backbone(dict(report.backbone, init_cfg=None)).double()
    ours.eval()
    ours.load_state_dict(weights, strict=True)
    assert_same(ours(X)[-1:], theirs(X))

    model = dict(type='ImageClassifier', backbone=dict(cfg, norm_cfg=dict(type='SN')))
    path = tmp_path / 'classifier.py'
    path.write_text(f"default_scope = 'mmpretrain'\ncustom_imports = dict(imports=['mmnorm'])\nmodel = {model}")
    _, same = convert(checkpoint, 'SN', config=str(path))
    assert theirs.state_dict().keys() <= same.keys()
    ours = registry.build(model['backbone']).double()
    ours.eval()
    ours.load_state_dict(same, strict=True)
    assert_same(ours(X), theirs(X))


@pytest.mark.parametrize('norm', [SN, SSN])
@pytest.mark.parametrize('share', [0.9, 1 / 3])
def test_share_of_bn(norm, share):
    weights, reference = networks.bn_tensors(4), norm(4)
    converted, changed, notes = convert_norms(weights, reference.state_dict(), bn_share=share)
    assert changed == {'': ('BN', norm.__name__)} and 'has to be trained' in notes[0]
    reference.load_state_dict(converted)
    for ratios in reference.ratios():
        torch.testing.assert_close(ratios, torch.tensor([(1 - share) / 2, (1 - share) / 2, share]))


def test_ratios_train_unless_they_select_bn_to_the_last_bit():
    gradients = []
    for share in (1, 0.99, 0.9):
        layer = SN(4)
        layer.load_state_dict(convert_norms(networks.bn_tensors(4), layer.state_dict(), bn_share=share)[0])
        layer(torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1)) + 1).pow(3).sum().backward()
        gradients.append(float(layer.mean_weight.grad.norm()))
    assert gradients[0] == 0 and 0 < gradients[1] < gradients[2]


@pytest.mark.parametrize('norm', [SN, SSN])
def test_groups_get_ratios_for_each(norm):
    reference = norm(4, groups=2)
    converted = convert_norms(networks.bn_tensors(4), reference.state_dict())[0]
    reference.load_state_dict(converted)
    assert torch.equal(reference.ratios()[0], torch.tensor([[0.0, 0.0, 1.0]] * 2))


@pytest.mark.parametrize(
    'cfg, own', [(dict(center=False), ['scale_bias', 'scale_weight']), (dict(scale=False), ['center_weight'])], ids=str
)
def test_rbn_with_one_calibration(cfg, own):
    bn, layer, x = networks.bn_tensors(4), RBN(4, **cfg).eval(), torch.randn(2, 4, 5, 5)
    converted = convert_norms(bn, layer.state_dict())[0]
    assert sorted(converted.keys() - bn.keys()) == own
    layer.load_state_dict(converted)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), networks.bn(bn, x), rtol=1e-5, atol=1e-5)


def test_only_what_computes_bn_becomes_bn(convert):
    sn = convert(bn_resnet50(), 'SN')[1]
    soft = {**sn, 'layer2.0.bn3.var_weight': torch.tensor([0.0, 3.0, 4.0])}
    with pytest.raises(ValueError, match=r'cannot become BN: SN whose ratios .*--hard .*: 1 \(layer2.0.bn3\)$'):
        convert(soft, 'BN')
    hard = convert(soft, 'BN', hard=True)[1]
    assert torch.equal(hard['layer2.0.bn3.weight'], sn['layer2.0.bn3.weight'])
    picked = dict(meta=dict(mmnorm=dict(picks={})), state_dict=soft)  # as harden_files writes it
    assert convert(picked, 'BN')[1].keys() == hard.keys()
    with pytest.raises(ValueError, match='layer2.0.bn3'):
        convert({**soft, 'layer2.0.bn3.var_weight': torch.tensor([0.0, 5.0, 4.0])}, 'BN', hard=True)
    again = convert(picked, 'SN')[0]  # what is made of them is still hardened, and says so
    assert again.backbone['norm_cfg'] == dict(type='SN', hard=True) and 'hard=True' in again.notes[0]
    assert convert(read_checkpoint(again.backbone['init_cfg']['checkpoint']), 'BN')[1].keys() == hard.keys()
    rbn = convert(bn_resnet50(), 'RBN')[1]
    biased = {**rbn, 'bn1.scale_bias': torch.randn(WIDTH)}
    torch.testing.assert_close(
        convert(biased, 'BN')[1]['bn1.weight'], rbn['bn1.weight'] * torch.sigmoid(biased['bn1.scale_bias'])
    )
    for leaf in ('center_weight', 'scale_weight'):
        with pytest.raises(ValueError, match=r'BN: RBN whose center_weight or scale_weight is not 0.*: 1 \(bn1\)$'):
            convert({**rbn, f'bn1.{leaf}': torch.eye(WIDTH)[0]}, 'BN')
    iebn = convert(bn_resnet50(), 'IEBN')[1]
    with pytest.raises(ValueError, match=r'BN: IEBN whose weight_readjust is not 0.*: 1 \(bn1\)$'):
        convert({**iebn, 'bn1.weight_readjust': torch.eye(WIDTH)[0]}, 'BN')


def test_refusals_name_three_layers_or_all(convert):
    sn = resnet50(lambda _, channels: networks.sn_tensors(channels))
    with pytest.raises(ValueError, match=r': 53 \(bn1, layer1.0.bn1, layer1.0.bn2 \.\.\.\)$') as few:
        convert(sn, 'BN')
    with pytest.raises(ValueError, match=r': 53 \(bn1, .*, layer4.2.bn3\)$') as all_of_them:
        convert(sn, 'BN', verbose=True)
    assert len(str(few.value)) < 300 and str(all_of_them.value).count('.bn') == 48


@pytest.mark.parametrize(
    'norm, kind',
    dict(
        SyncSN='SN', SyncIEBN='IEBN', SyncRBN='RBN', SyncEN='EN', SyncBN='BN', FrozenBN='BN', BRN='BN', CBN='BN'
    ).items(),
)
def test_norms_that_take_the_files_of_another(convert, norm, kind):
    bn = bn_resnet50()
    report, weights = convert(bn, norm.lower())
    assert report.norms == {f'BN -> {kind}': 53} and report.backbone['norm_cfg'] == dict(type=norm)
    expected = convert(bn, kind)[1]
    assert all(torch.equal(weights[key], expected[key]) for key in expected.keys() | weights.keys())


def test_en_to_bn_says_what_goes(convert):
    bn = bn_resnet50()
    en = {
        **bn,
        'bn1.alpha': torch.tensor(0.25),
        'bn1.beta': torch.tensor(0.0),
        'layer1.0.bn2.alpha': torch.tensor(0.0),
        'layer1.0.bn2.beta': torch.tensor(0.0),
    }
    report, weights = convert(en, 'BN')
    assert 'alpha and beta of 1 EN layers are not 0 (up to 0.25)' in report.notes[0]
    assert report.dropped['not in the new norm'] == ['bn1.alpha', 'bn1.beta', 'layer1.0.bn2.alpha', 'layer1.0.bn2.beta']
    assert all(torch.equal(value, bn[key]) for key, value in weights.items())


def test_detectors_of_mmdet_and_prefixes(convert):
    bn = bn_resnet50()
    detector = {f'module.backbone.{key}': value for key, value in bn.items()}
    detector.update(
        {f'module.{key}': torch.ones(1) for key in ('neck.fpn_convs.0.conv.weight', 'ema_backbone_conv1_weight')}
    )
    report, weights = convert(
        dict(meta=dict(epoch=3), state_dict=detector, ema_state_dict={}, optimizer={}), 'BN', prefix='backbone.'
    )
    assert report.layout == 'mmdet' and weights.keys() == {f'backbone.{key}' for key in bn}
    assert sorted(key for keys in report.dropped.values() for key in keys) == [
        'ema_backbone_conv1_weight',
        'ema_state_dict',
        'neck.fpn_convs.0.conv.weight',
    ]
    both = {f'{who}.{key}': value for who in ('student', 'teacher') for key, value in detector.items()}
    both = {key.replace('module.', ''): value for key, value in both.items()}
    with pytest.raises(ValueError, match='2 backbones, under student.backbone. and teacher.backbone.; choose one'):
        convert(both, 'BN')
    report, weights = convert(both, 'BN', source_prefix='teacher.')
    assert weights.keys() == bn.keys() and len(report.dropped['not under --source-prefix']) == len(detector)


@pytest.mark.parametrize('prefix', ['teacher', 'teacher.', 'teacher.backbone'])
def test_a_classifier_is_dropped_wherever_the_backbone_is(convert, prefix):
    bn = bn_resnet50()
    both = {
        f'{who}.backbone.{key}': value for who in ('student', 'teacher') for key, value in with_classifier(bn).items()
    }
    report, weights = convert(both, 'BN', source_prefix=prefix)
    assert weights.keys() == bn.keys()
    inside = '' if prefix == 'teacher.backbone' else 'backbone.'
    assert report.dropped['ImageNet classifier'] == [f'{inside}fc.weight', f'{inside}fc.bias']


@pytest.mark.parametrize('made', [float('nan'), float('inf')])
def test_what_is_not_finite_is_refused(convert, tmp_path, made):
    bn = with_classifier(bn_resnet50())
    bn['fc.weight'][0, 0] = made  # is dropped, and so is of no concern
    convert(bn, 'SN')
    bn['layer2.0.bn1.running_var'][3] = bn['layer3.0.conv2.weight'][0, 0, 1, 1] = made
    with pytest.raises(ValueError, match='2 of its tensors hold NaN or infinity; first: layer2.0.bn1.running_var'):
        convert(bn, 'SN')
    assert not (tmp_path / 'out_2.pth').exists()


def test_where_weights_come_from_stays_known(convert, tmp_path):
    bn, files = bn_resnet50(), []
    for norm in ('RBN', 'BN', 'SN'):
        report, _ = convert(read_checkpoint(files[-1]) if files else bn, norm)
        files.append(report.backbone['init_cfg']['checkpoint'])
        note = read_checkpoint(files[-1])['meta']['mmnorm']
        assert note['converted_from'] == str(tmp_path / 'source_0.pth')
        assert len(note['through']) == len(files) - 1 and note['whose'].startswith("torchvision's ResNet")
        assert note['licence'] == "if it is torchvision's release: BSD-3-Clause"
        assert f'  license: {note["licence"]}' in report.text().splitlines()
        said = f"  already converted, from {tmp_path / 'source_0.pth'}: torchvision's ResNet"
        assert (said in report.text()) == (len(files) > 1)
    assert [path.rpartition('_')[2] for path in note['through']] == ['2.pth', '4.pth']


@pytest.mark.parametrize(
    'checkpoint, norm, license',
    [
        (
            lambda: resnet50(lambda _, channels: networks.sn_tensors(channels)),
            'SN',
            'that of its source, which the file ',
        ),
        (
            lambda: {
                key.replace('bn', 'sn'): value
                for key, value in resnet50(lambda _, channels: networks.sn_tensors(channels)).items()
            },
            'SN',
            "if it is the authors' release: CC-BY-NC",
        ),
        (
            lambda: resnet50(lambda _, channels: networks.rbn_tensors(channels)),
            'RBN',
            "if it is the authors' release: re",
        ),
        (lambda: ibn_resnet50(), 'IBN', "if it is the authors' release: MIT"),
        (
            lambda: resnet50(lambda name, channels: networks.gn_tensors(channels)),
            'XBN',
            "if it is the authors' release: ",
        ),
        # IN of XBN's authors has no tensors
        (
            lambda: resnet50(lambda name, channels: {} if name.endswith('.bn2') else networks.bn_tensors(channels)),
            'XBN',
            "if it is the authors' release: they state none",
        ),
    ],
    ids=['ours', 'sn', 'rbn', 'ibn', 'xbn', 'xbn, IN'],
)
def test_licenses_are_conditional(convert, checkpoint, norm, license):
    assert f'\n  license: {license}' in convert(checkpoint(), norm)[0].text()


@pytest.mark.parametrize(
    'layout, says',
    [
        ('xbn', r'layout xbn, which has batch-free norms and names such as layer1.0.conv1.weight'),
        ('sn', r'layout sn, which has SN norms and names such as layer1.0.sn1.mean_weight'),
        ('rbn', r'layout rbn, which has RBN norms and names such as layer1.0.bn1.scale_bias'),
    ],
)
def test_a_wrong_layout_is_told_from_the_right_one(convert, layout, says):
    with pytest.raises(ValueError, match=f'it is not in the {says}; it looks like torchvision: --from torchvision$'):
        convert(bn_resnet50(), 'SN', layout=layout)


def test_variances_of_the_authors_of_sn_are_told_of_where_a_config_has_others(convert, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\nmodel = dict(backbone=dict(base_channels=8, "
        "stem_channels=8, norm_cfg=dict(type='SN'), init_cfg=None), neck=dict(in_channels=[32, 64, 128, 256]))\n"
    )
    sn = resnet50(lambda _, channels: networks.sn_tensors(channels))
    for theirs in (
        {key.replace('bn', 'sn'): value for key, value in sn.items()},
        {detectron(key, 'Conv_Body.', 'Conv_Body.'): value for key, value in sn.items()},
    ):
        assert 'unbiased=True in norm_cfg computes what they did' in convert(theirs, 'SN', config=config)[0].notes[-1]
    assert not convert(sn, 'SN')[0].notes  # trained here


def test_meta_and_note_are_kept(convert, tmp_path):
    checkpoint = dict(meta=dict(epoch=3), state_dict=resnet50(lambda _, channels: networks.rbn_tensors(channels)))
    convert(checkpoint, 'RBN')
    meta = read_checkpoint(tmp_path / 'out_0.pth')['meta']
    assert meta['epoch'] == 3 and meta['mmnorm']['layout'] == 'rbn' and 'research' in meta['mmnorm']['licence']
    assert meta['mmnorm']['converted_from'].endswith('source_0.pth')


def test_the_file_initializes_a_backbone(convert, tmp_path):
    weights = convert(bn_resnet50(), 'SN')[1]
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'out_0.pth'))
    model = ResNet(50, base_channels=WIDTH, norm_cfg=dict(type='SN'), init_cfg=init_cfg)
    model.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key].to(value))


def convert_to(norm, bn):
    return convert_norms(bn, ResNet(50, base_channels=WIDTH, norm_cfg=dict(type=norm)).state_dict())[0]


def sn_names(bn):
    return {
        key.replace('bn', 'sn'): value
        for key, value in resnet50(lambda _, channels: networks.sn_tensors(channels)).items()
    } | {'layer1.0.bn1.weight': bn['bn1.weight']}


@pytest.mark.parametrize(
    'change, options, message',
    [
        (
            lambda bn: {key: value for key, value in bn.items() if 'layer3.5' not in key},
            {},
            r'its stages have \(3, 4, 5, 3\) bottleneck blocks; known are .*\(3, 4, 6, 3\) of ResNet-50',
        ),
        (
            lambda bn: {**bn, 'layer1.0.se.weight': bn['bn1.weight']},
            {},
            '1 of its tensors not used; first: layer1.0.se.weight',
        ),
        (lambda bn: {**bn, 'extra': bn['bn1.weight']}, {}, 'first: extra'),
        (
            lambda bn: {key: value for key, value in bn.items() if key != 'layer2.1.conv2.weight'},
            {},
            'missing 1 of 424 tensors; first: layer2.1.conv2.weight',
        ),
        (
            lambda bn: {**bn, 'layer2.1.conv2.weight': torch.ones(3)},
            {},
            r'1 tensors differ in shape: size mismatch for layer2.1.conv2.weight',
        ),
        (
            lambda bn: {key: value for key, value in bn.items() if key != 'conv1.weight'},
            {},
            'it has no convolution stem.0.weight, a part of every ResNet with a deep stem',
        ),
        (lambda bn: {'features.0.weight': torch.ones(2)}, {}, 'in none of the known layouts.* features.0.weight'),
        (lambda bn: dict(state_dict=bn, model=bn), {}, 'a network as state_dict and another as model'),
        (lambda bn: dict(epoch=3), {}, 'it holds no tensors by name, only epoch'),
        (lambda bn: [bn], {}, 'it holds a list'),
        (lambda bn: {**bn, 'module.conv1.weight': bn['conv1.weight']}, {}, 'some names both with module. and without'),
        (
            lambda bn: {**bn, 'layer1.0.conv2.weight': bn['bn1.weight']},
            {},
            'it has no convolution layer1.0.conv2.weight',
        ),
        # nothing that a network depends on is made up
        (
            lambda bn: {key: value for key, value in bn.items() if key != 'bn1.running_var'},
            {},
            'first: bn1.running_var',
        ),
        (sn_names, {}, 'layer1.0.sn1.weight and layer1.0.bn1.weight would both become layer1.0.bn1.weight'),
        (
            lambda bn: {
                **bn,
                **{
                    detectron(key, 'Conv_Body.', 'Conv_Body.'): value
                    for key, value in resnet50(lambda _, channels: networks.sn_tensors(channels)).items()
                },
            },
            {},
            'it is ambiguous: conv1.weight and Conv_Body.res1.conv1.weight would both',
        ),
        (lambda bn: bn, dict(layout='sn-detectron', source_prefix='gone.'), 'no tensor whose name starts with gone.'),
        (lambda bn: bn, dict(bn_share=0), 'share of BN must be above 0'),
        (lambda bn: bn, dict(norm='BN', bn_share=0.5), '--bn-share is for norms that become SN: none does here'),
        (lambda bn: convert_to('SN', bn), dict(bn_share=0.5), '--bn-share is for norms that become SN: none does here'),
        (lambda bn: bn, dict(hard=True), '--hard is for SN layers: it has none'),
        (
            lambda bn: bn,
            dict(norm='GN'),
            '--to GN: not a norm to convert to; choose one of BN, EN, RBN, IEBN, SN, SSN, BW, SW, XBN, IBN, ',
        ),
        (lambda bn: bn, dict(whole=True), '--whole converts the whole network of a config'),
    ],
)
def test_what_is_refused(convert, tmp_path, change, options, message):
    with pytest.raises(ValueError, match=message):
        convert(change(bn_resnet50()), **{'norm': 'SN', **options})
    assert not list(tmp_path.glob('*out*'))


class Malicious:
    def __reduce__(self):
        return os.mkdir, ('ran',)


def test_files_that_run_something_or_are_damaged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict=bn_resnet50(), extra=Malicious()), 'malicious.pth')
    with open('malicious.pth', 'rb') as file:
        whole = file.read()
    (tmp_path / 'truncated.pth').write_bytes(whole[: len(whole) // 2])
    for name, what in (
        ('malicious', 'refused, because it would run posix.mkdir;'),
        ('truncated', 'its end is missing'),
    ):
        with pytest.raises(ValueError, match=f'{name}.pth cannot be loaded as a checkpoint: {what}'):
            convert_file(f'{name}.pth', 'out.pth', 'SN')
    with pytest.raises(FileNotFoundError, match='gone.pth does not exist'):
        convert_file('gone.pth', 'out.pth', 'SN')
    assert not os.path.exists('ran') and not os.path.exists('out.pth')


def test_files_of_old_pytorch(tmp_path):
    torch.save(dict(state_dict=bn_resnet50()), tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    assert convert_file(str(tmp_path / 'old.pth'), tmp_path / 'out.pth', 'EN').layout == 'torchvision'


def test_nothing_is_overwritten(convert, tmp_path):
    convert(bn_resnet50(), 'SN')
    before = (tmp_path / 'out_0.pth').read_bytes()
    for out in ('source_0.pth', 'out_0.pth'):
        with pytest.raises(FileExistsError, match='is not overwritten'):
            convert_file(str(tmp_path / 'source_0.pth'), tmp_path / out, 'RBN')
    assert (tmp_path / 'out_0.pth').read_bytes() == before


@pytest.mark.parametrize(
    'name, what',
    [
        ('layer1.2.IN.weight', 'IBN-Net-b, with IN after the addition'),
        ('module.layer1.0.se.fc.0.weight', 'a network of squeeze-and-excitation blocks'),
    ],
)
@pytest.mark.parametrize('norm', ['SN', 'IBN', 'BN'])
def test_networks_that_are_not_here_are_refused_by_name(convert, name, what, norm):
    with pytest.raises(ValueError, match=f'it is {re.escape(what)}') as error:
        convert({**resnet50(lambda _, channels: networks.bn_tensors(channels)), name: torch.ones(8)}, norm)
    assert '--config' not in str(error.value) and name in str(error.value)
