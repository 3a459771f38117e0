import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from mmdet.models.backbones import ResNet
from mmdet.models.necks import FPN
from torch import nn

from mmnorm import fuse_conv_norm
from mmnorm.norms import SN, FrozenBN, harden

from ..norms.cases import randomized


def lively(model):
    """The model in evaluation mode, with statistics and affines that are not the defaults."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            randomized(module)
    model.eval()  # mmdet's backbones return nothing here
    return model


def all_bn(model):
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, SN):
                m.mean_weight[..., 2] = m.var_weight[..., 2] = 5.0
    harden(model)
    return model


def resnet(norm, depth=50, **arguments):
    return ResNet(depth, base_channels=8, norm_cfg=dict(type=norm), norm_eval=True, **arguments)


@torch.no_grad()
@pytest.mark.parametrize(
    'model',
    [
        lambda: lively(resnet('BN')),
        lambda: lively(resnet('FrozenBN', 18)),
        lambda: all_bn(lively(resnet('SN'))),
        lambda: lively(resnet('BN', deep_stem=True, avg_down=True)),
        lambda: lively(nn.Sequential(resnet('SyncBN', 18))),
        lambda: lively(
            nn.Sequential(ConvModule(3, 8, 3, norm_cfg=dict(type='BN')), nn.Conv2d(8, 8, 3, groups=4), FrozenBN(8))
        ),
    ],
)
def test_everything_constant_is_folded_and_outputs_stay_equal(model):
    model, x = model(), torch.randn(2, 3, 64, 64)
    expected = [copy.deepcopy(model)(x)] if isinstance(model, nn.Sequential) else copy.deepcopy(model)(x)
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    fused = fuse_conv_norm(model)
    assert len(fused.folded) == norms and not fused.left
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    ours = [model(x)] if isinstance(model, nn.Sequential) else model(x)
    for one, other in zip(ours, expected):
        for a, b in zip(*((v if isinstance(v, tuple) else (v,)) for v in (one, other))):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize(
    'kind, reason',
    [
        ('SN', 'SN is not hardened to BN'),
        ('RBN', 'RBN is not a constant affine map'),
        ('EN', 'EN is not a constant affine map'),
        ('GW', 'GW is not a constant affine map'),
        ('PN', 'PN is not a constant affine map'),
        ('IBN', 'IBN is not a constant affine map'),
    ],
)
def test_what_depends_on_the_sample_is_left_and_said(kind, reason):
    model = lively(ConvModule(3, 8, 3, norm_cfg=dict(type=kind)))
    x = torch.randn(2, 3, 9, 9)
    expected = model(x)
    fused = fuse_conv_norm(model)
    assert list(fused.left.values()) == [reason] and not fused.folded
    assert str(fused) == f'folded 0 norms into the convolutions before them; left 1: {reason}'
    assert torch.equal(model(x), expected)


class Shared(nn.Module):
    """Heads of some detectors share a convolution between levels that have norms of their own."""

    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(3, 8, 3)
        self.levels = nn.ModuleList([nn.Sequential(conv, nn.BatchNorm2d(8)) for _ in range(2)])

    def forward(self, x):
        return [level(x) for level in self.levels]


@torch.no_grad()
def test_what_would_go_wrong_is_left():
    x = torch.randn(2, 3, 9, 9)
    cases = [
        (Shared(), 'BatchNorm2d or the convolution before it is used in several places'),
        (
            ConvModule(3, 8, 3, norm_cfg=dict(type='BN'), order=('conv', 'act', 'norm')),
            'BatchNorm2d is not known to follow a plain convolution',
        ),
        (
            ConvModule(3, 8, 3, conv_cfg=dict(type='ConvWS'), norm_cfg=dict(type='BN')),
            'BatchNorm2d is not known to follow a plain convolution',
        ),
        (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)),
            'BatchNorm2d keeps no running statistics',
        ),
    ]
    for model, reason in cases:
        model = model.eval()
        expected = model(x)
        assert set(fuse_conv_norm(model).left.values()) == {reason}
        torch.testing.assert_close(model(x), expected)


@torch.no_grad()
def test_what_was_set_up_otherwise_still_works_after():
    x = torch.randn(2, 3, 9, 9)
    efficient = lively(ConvModule(3, 8, 3, norm_cfg=dict(type='BN'), efficient_conv_bn_eval=True))
    spectral = lively(ConvModule(3, 8, 3, norm_cfg=dict(type='BN'), with_spectral_norm=True))
    part = lively(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)))
    for model, folded in ((efficient, 1), (spectral, 0)):
        expected = model(x)
        assert len(fuse_conv_norm(model).folded) == folded
        torch.testing.assert_close(model.eval()(x), expected, rtol=1e-4, atol=1e-4)
    part[1].train()
    fused = fuse_conv_norm(part)
    assert list(fused.folded) == ['3'] and fused.left == {'1': 'BatchNorm2d is in training mode'}


@torch.no_grad()
def test_in_a_neck():
    model = lively(FPN([8, 16], 8, 2, norm_cfg=dict(type='FrozenBN')))
    inputs = torch.randn(1, 8, 16, 16), torch.randn(1, 16, 8, 8)
    expected = model(inputs)
    assert len(fuse_conv_norm(model).folded) == 4
    for one, other in zip(model(inputs), expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match=r'call model.eval\(\) first'):
        fuse_conv_norm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
