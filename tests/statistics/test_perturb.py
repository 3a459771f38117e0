"""Noise on statistics (xbn, Eq. 5)."""

import pytest
import torch
from mmdet.models.backbones import Darknet, MobileNetV2, ResNet
from torch import nn

from mmnorm.norms import GBGN
from mmnorm.openmmlab.mmdet_models import XBNResNet
from mmnorm.statistics import first_norms, perturbed


def layers():
    torch.manual_seed(0)
    found = [nn.BatchNorm2d(500), GBGN(64, channel_groups=32)]
    for layer in found:
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return found


def test_noise_is_that_of_the_equation():
    disturbed = layers()
    originals = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in disturbed]
    with perturbed(disturbed, 0.4, seed=3):
        noise = [
            (value / original - 1) / 0.4
            for layer, pair in zip(disturbed, originals)
            for value, original in zip((layer.running_mean, layer.running_var), pair)
        ]
    with perturbed(disturbed, 0.2, seed=3):  # the same noise, half as large
        for layer, (mean, _), of_layer in zip(disturbed, originals, noise[::2]):
            torch.testing.assert_close(layer.running_mean, mean * (1 + 0.2 * of_layer), rtol=1e-4, atol=1e-5)
    drawn = torch.cat(noise)
    assert drawn.abs().max() <= 1 + 1e-4 and drawn.max() > 0.99 and drawn.min() < -0.99
    assert abs(float(drawn.mean())) < 0.05 and abs(float(drawn.var()) - 1 / 3) < 0.03  # uniform on [-1, 1]
    assert torch.corrcoef(torch.stack(noise[:2]))[0, 1].abs() < 0.2  # mean and variance have noise of their own
    with perturbed(disturbed, 0.4, seed=4):
        assert not torch.allclose(disturbed[0].running_mean, originals[0][0] * (1 + 0.4 * noise[0]))


def test_originals_come_back_whatever_happens():
    disturbed = layers()
    originals = [layer.running_var.clone() for layer in disturbed]
    with pytest.raises(KeyboardInterrupt), perturbed(disturbed, 1):
        assert (disturbed[0].running_var >= 0).all() and not torch.equal(disturbed[0].running_var, originals[0])
        raise KeyboardInterrupt
    assert all(torch.equal(layer.running_var, value) for layer, value in zip(disturbed, originals))


@pytest.mark.parametrize('delta', [-0.1, 1.1, float('nan')])
def test_magnitudes_beyond_the_equation(delta):
    with pytest.raises(ValueError, match='must be in'), perturbed(layers(), delta):
        pass


def test_first_norms_of_blocks():
    assert list(first_norms(ResNet(50), 6)) == [f'layer1.{i}.bn1' for i in range(3)] + [
        f'layer2.{i}.bn1' for i in range(3)
    ]
    assert len(first_norms(ResNet(50), 13)) == 13
    third = XBNResNet(50, xbn=dict(position=1, norm_cfg=dict(type='GN', num_groups=64)))
    assert list(first_norms(third, 1)) == ['layer1.0.bn2']  # its bn1 holds a GN
    with pytest.raises(ValueError, match='the first 17 blocks were asked for; this ResNet has 16'):
        first_norms(ResNet(50), 17)
    with pytest.raises(ValueError, match='has a BN'):
        first_norms(XBNResNet(50, xbn=dict(scope='full')), 3)
    assert list(first_norms(MobileNetV2(), 2)) == ['layer1.0.depthwise_conv.bn', 'layer2.0.expand_conv.bn']
    with pytest.raises(TypeError, match='no residual blocks'):
        first_norms(Darknet(), 1)
