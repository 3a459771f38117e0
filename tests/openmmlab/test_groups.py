"""Numbers of groups on backbones of every width: what is not given outright always fits."""

import re

import pytest
import torch
from mmdet.models.backbones import RegNet
from mmdet.registry import MODELS as DET
from mmseg.registry import MODELS as SEG
from torch import nn

from mmnorm.blocks import norm_layers, replace_norms
from mmnorm.norms import GBGN, GW

NARROW = [
    (DET, dict(type='RegNet', arch='regnetx_400mf')),
    (DET, dict(type='RegNet', arch='regnetx_3.2gf')),
    (DET, dict(type='MobileNetV2', widen_factor=0.75)),
    (DET, dict(type='EfficientNet', arch='b0')),
    (DET, dict(type='CSPDarknet', widen_factor=0.375, deepen_factor=0.33)),
    (DET, dict(type='Res2Net', depth=50, scales=4, base_width=26)),
    (SEG, dict(type='MobileNetV3')),
    (SEG, dict(type='ShuffleNetV2', widen_factor=1.0)),
    (
        SEG,
        dict(
            type='HRNet',
            extra=dict(
                stage1=dict(num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(1,), num_channels=(64,)),
                stage2=dict(num_modules=1, num_branches=2, block='BASIC', num_blocks=(1,) * 2, num_channels=(18, 36)),
                stage3=dict(
                    num_modules=1, num_branches=3, block='BASIC', num_blocks=(1,) * 3, num_channels=(18, 36, 72)
                ),
                stage4=dict(
                    num_modules=1, num_branches=4, block='BASIC', num_blocks=(1,) * 4, num_channels=(18, 36, 72, 144)
                ),
            ),
        ),
    ),
]


def build(cfg, registry=DET):
    return registry.build(dict(cfg, _scope_=registry.scope))  # whatever the default scope is


@pytest.mark.parametrize('arch', RegNet.arch_settings)
def test_xbn_regnet_builds_all_regnets(arch):
    with torch.device('meta'):  # widths are all that counts
        backbone = build(dict(type='XBNRegNet', arch=arch))
    placed = [backbone.get_submodule(name) for name in backbone.xbn_layers]
    assert placed and all(isinstance(norm, nn.GroupNorm) for norm in placed)
    for norm in placed:
        larger = range(norm.num_groups + 1, min(64, norm.num_channels) + 1)
        assert not any(norm.num_channels % groups == 0 for groups in larger)


@pytest.mark.parametrize('norm', [GW, GBGN])
@pytest.mark.parametrize('registry, cfg', NARROW, ids=lambda v: v['type'] if isinstance(v, dict) else '')
def test_defaults_fit_every_width(registry, cfg, norm):
    backbone = build(dict(cfg, norm_cfg=dict(type=norm.__name__)), registry)
    layers = [layer for layer in norm_layers(backbone).values() if isinstance(layer, norm)]
    assert len(layers) > 10


def test_replacing_by_gn_fits_every_width():
    backbone = build(dict(type='MobileNetV2'))
    names = replace_norms(backbone, 'GN')
    assert backbone.get_submodule(names[0]).num_groups == 32
    assert {backbone.get_submodule(name).num_groups for name in names} == {16, 24, 32}


@pytest.mark.parametrize(
    'norm_cfg, expected',
    [
        (dict(type='GN', num_groups='auto'), [32, 48, 48]),
        (dict(type='GN'), [32, 48, 48]),
        (dict(type='GN', num_groups='auto', max_groups=8), [8, 8, 8]),
        (dict(type='GN', channels_per_group=16), [2, 6, 9]),
        (dict(type=nn.GroupNorm, num_groups='auto', channels_per_group=8), [4, 12, 18]),
        (dict(type='GW'), [32, 48, 48]),
        (dict(type='GW', channels_per_group=16), [2, 6, 9]),
        (None, [16, 16, 16]),  # the paper's
    ],
)
def test_groups_of_a_placement(norm_cfg, expected):
    backbone = build(
        dict(type='XBNMobileNetV2', xbn=dict(stages=(0, 1), **({} if norm_cfg is None else dict(norm_cfg=norm_cfg))))
    )
    placed = [backbone.get_submodule(name) for name in backbone.xbn_layers]
    assert [layer.num_channels for layer in placed] == [32, 96, 144]
    assert [layer.num_groups for layer in placed] == expected


@pytest.mark.parametrize(
    'norm_cfg, message',
    [
        (dict(type='GN', num_groups=64), 'num_groups=64 does not divide 96 channels; choose one of 1, 2, 3, 4, 6, 8, '),
        (dict(type='GW', num_groups=64), 'GW: num_groups=64 does not divide 96 channels; choose one of 1, 2, 3, 4, 6'),
        (dict(type='GN', channels_per_group=64), 'channels_per_group=64 does not divide 96 channels'),
        (
            dict(type='GN', num_groups=8, channels_per_group=16),
            "say the same; leave one out, or write num_groups='auto'",
        ),
        (dict(type='GN', num_groups='8'), "num_groups must be a positive integer or 'auto', got '8'"),
        (dict(type='GN', channels_per_group=0), 'channels_per_group must be a positive integer, got 0'),
        (dict(type='SN', groups=64), 'SN: groups=64 does not divide 96 channels'),
        (dict(type='SN', group=64.5, grups=2), 'unknown argument grups=2'),
    ],
)
def test_what_does_not_fit_is_named_by_layer(norm_cfg, message):
    layer = r'xbn: layer\d.0.depthwise_conv.bn: '
    with pytest.raises((TypeError, ValueError), match=f'{layer}.*{re.escape(message)}'):
        build(dict(type='XBNMobileNetV2', xbn=dict(norm_cfg=norm_cfg, stages=(1, 2))))
