"""Convolutions of computed weights, by conv_cfg, beside norms of ours in networks that the hosts build."""

import pytest
import torch
from mmcv.cnn.bricks.conv_ws import ConvWS2d
from mmdet.registry import MODELS as DETECTORS
from mmseg.registry import MODELS as SEGMENTORS
from torch import nn
from torch.nn import functional as F

from mmnorm.norms import BCN

WS = dict(type='ConvWS')
RESNET = dict(type='ResNet', depth=18, base_channels=8, norm_eval=False, conv_cfg=WS)
NORMS = dict(
    GN=dict(norm_cfg=dict(type='GN', num_groups=4)),
    BCN=dict(norm_cfg=dict(type='BCN', num_groups=4)),
    XBN=dict(type='XBNResNet', norm_cfg=dict(type='BN'), xbn=dict(norm_cfg=dict(type='GN', num_groups=4))),
)
KINDS = dict(GN=nn.GroupNorm, BCN=BCN, XBN=nn.GroupNorm)


def detector(name):
    norm_cfg = NORMS[name]['norm_cfg']
    neck = dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=4, norm_cfg=norm_cfg, conv_cfg=WS)
    return nn.Sequential(DETECTORS.build(RESNET | NORMS[name]), DETECTORS.build(neck))


def segmentor(name):
    head = dict(
        type='FCNHead',
        in_channels=64,
        channels=8,
        num_classes=3,
        norm_cfg=NORMS[name]['norm_cfg'],
        conv_cfg=WS,
        loss_decode=dict(type='CrossEntropyLoss'),
    )
    backbone = RESNET | NORMS[name]
    return nn.Sequential(SEGMENTORS.build(backbone), SEGMENTORS.build(head))


@pytest.mark.parametrize('build', [detector, segmentor])
@pytest.mark.parametrize('name', NORMS)
def test_weight_standardization_trains_beside_the_norm(name, build):
    """Each convolution computes with the weights that its definition gives, and all learn."""
    torch.manual_seed(0)
    model, expected = build(name), []
    assert any(isinstance(layer, KINDS[name]) for layer in model.modules())

    def compare(conv, inputs, output):
        weight = conv.weight.detach().double()
        dims = (1, 2, 3)
        # the variance over a filter as mmcv takes it, unbiased, and its eps beside the deviation
        weight = (weight - weight.mean(dims, True)) / (weight.flatten(1).std(1).view(-1, 1, 1, 1) + conv.eps)
        bias = None if conv.bias is None else conv.bias.double()
        expected.append(conv)
        own = F.conv2d(inputs[0].detach().double(), weight, bias, conv.stride, conv.padding)
        torch.testing.assert_close(output.detach().double(), own, rtol=1e-3, atol=1e-3)

    convolutions = [layer for layer in model.modules() if isinstance(layer, ConvWS2d)]
    for conv in convolutions:
        conv.register_forward_hook(compare)
    result = model(torch.randn(2, 3, 64, 64))
    sum(level.square().sum() for level in (result if isinstance(result, (tuple, list)) else [result])).backward()
    assert len(convolutions) >= 20 and set(expected) == set(convolutions)
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), parameter_name
    assert all(conv.weight.grad.abs().max() > 0 for conv in convolutions)
