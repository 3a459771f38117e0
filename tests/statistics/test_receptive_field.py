"""Receptive fields against published values and against what gradients reach."""

import copy
import math

import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack, RoIAlign
from mmdet.models.backbones import ResNet
from mmdet.models.necks import FPN
from mmseg.models.backbones import ResNetV1c
from torch import nn
from torch.nn import functional as F

from mmnorm.norms import IBN, PN, SN
from mmnorm.statistics.receptive_field import receptive_fields, run_dense_part

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')


def on_image(size=64, channels=3):
    return lambda model: model(torch.rand(1, channels, size, size))


def conv(kernel=3, stride=1, dilation=1, channels=2):
    return nn.Conv2d(channels, 2, kernel, stride, dilation * (kernel // 2), dilation)


class Sum(nn.ModuleList):
    """Branches on one input, summed."""

    def forward(self, x):
        return sum(branch(x) for branch in self)


class Joined(nn.ModuleList):
    def forward(self, x):
        return torch.cat([branch(x) for branch in self], 1)


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def reached_by_gradients(model, name, size, channels=3):
    """Width in pixels of what elements near the middle of a layer's input depend on, the widest of them.

    Everything is positive, so that nothing cancels, and maxima become means, which see the whole window.
    """
    model = copy.deepcopy(model)
    model.eval()
    for parent in model.modules():
        for key, child in list(parent.named_children()):
            if isinstance(child, nn.MaxPool2d):
                setattr(parent, key, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
    for parameter in model.parameters():
        parameter.data = torch.rand_like(parameter) + 0.1
    seen = []
    model.get_submodule(name).register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    image = torch.rand(1, channels, size, size, requires_grad=True)
    model(image)
    (x,), widths = seen, []
    middle = x.shape[-1] // 2
    for column in range(middle - 2, middle + 2):
        (gradient,) = torch.autograd.grad(x[0, :, x.shape[-2] // 2, column].sum(), image, retain_graph=True)
        columns = gradient[0].abs().sum((0, 1)).nonzero().flatten()
        widths.append((columns[-1] - columns[0] + 1).item())
    return max(widths)


@pytest.mark.parametrize(
    'layers',
    [
        [conv(7)],
        [conv(3, 2), conv(3)],
        [conv(3, 1, 2), conv(1), conv(3, 1, 3)],
        [conv(2, 2), conv(4, 3), conv(3)],
        [conv(3), nn.MaxPool2d(3, 2, 1), conv(3)],
        [nn.MaxPool2d(2), conv(3)],
        [nn.AvgPool2d((2, 2)), conv(3)],
        [conv(3, 2), nn.ConvTranspose2d(2, 2, 4, 2, 1), conv(3)],
        [conv(3, 2), nn.ConvTranspose2d(2, 2, 2, 2), conv(3)],
        [conv(3, 4), nn.Upsample(scale_factor=2), conv(3)],
        [conv(3, 4), nn.Upsample(scale_factor=2, mode='bilinear', align_corners=False)],
        [conv(3, 2), Sum([conv(1), conv(5)]), conv(3)],
        [Joined([conv(1), conv(3), conv(3, 1, 4)]), conv(3, channels=6)],
        [nn.Conv2d(2, 2, (7, 1)), nn.Conv2d(2, 2, (1, 5)), nn.Conv2d(2, 2, (3, 3), (1, 2)), conv(3)],
        [conv(3, 2), nn.Conv2d(2, 8, 3), nn.PixelShuffle(2), conv(3)],
        [conv(3), Call(lambda x: F.conv2d(x, torch.ones(2, 1, 3, 3), stride=(2, 2), groups=2)), conv(3)],
        [conv(3, 2), Call(lambda x: F.interpolate(x, size=(32, 32), mode='nearest')), conv(3)],
        [conv(3), Call(lambda x: F.avg_pool2d(x, kernel_size=3, stride=2)), conv(3)],
    ],
    ids=str,
)
def test_equals_what_gradients_reach(layers):
    model = nn.Sequential(*layers, nn.BatchNorm2d(2))
    name = str(len(layers))
    size = receptive_fields(model, on_image(channels=2))[name]
    assert isinstance(size, int)
    assert size == reached_by_gradients(model, name, 64, channels=2)


def test_published_fields_of_resnet50():
    fields = receptive_fields(ResNet(50, base_channels=4, norm_cfg=dict(type='SN')), on_image())
    assert fields['bn1'] == 7
    assert [fields[f'layer{stage}.{block}.bn3'] for stage, block in ((1, 2), (2, 3), (3, 5), (4, 2))] == [
        35,
        91,
        267,
        427,
    ]  # Araujo et al. 2019, computing receptive fields: the blocks' outputs
    assert len(fields) == 53
    # in the order in which they are run
    assert list(fields)[:5] == ['bn1', 'layer1.0.bn1', 'layer1.0.bn2', 'layer1.0.bn3', 'layer1.0.downsample.1']


def test_caffe_style_strides_see_more():
    fields = receptive_fields(ResNet(50, base_channels=4, style='caffe'), on_image())
    assert fields['layer4.2.bn3'] == 483  # the stride comes before the 3x3 convolution


@pytest.mark.parametrize(
    'build, names',
    [
        (
            lambda: ResNet(18, base_channels=4),
            ['layer1.1.bn2', 'layer2.0.downsample.1', 'layer2.0.bn2', 'layer3.1.bn2'],
        ),
        (
            lambda: ResNetV1c(
                depth=18,
                base_channels=4,
                stem_channels=4,
                strides=(1, 2, 1, 1),
                dilations=(1, 1, 2, 4),
                contract_dilation=True,
            ),
            ['stem.4', 'layer3.0.bn1', 'layer3.1.bn2', 'layer4.1.bn2'],
        ),
    ],
)
def test_hosts_backbones_equal_what_gradients_reach(build, names):
    backbone = build()
    fields = receptive_fields(backbone, on_image())
    for name in names:
        assert fields[name] == reached_by_gradients(backbone, name, 512)


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = ResNet(50, base_channels=4)
        self.neck = FPN([16, 32, 64, 128], 8, 5, norm_cfg=dict(type='SN'))
        self.rpn_head = nn.Module()
        self.rpn_head.bn = nn.BatchNorm2d(8)
        self.rpn_head.forward = lambda features: [self.rpn_head.bn(x) for x in features]
        self.bbox_head = nn.Linear(8, 8)  # cannot be called with a list

    def extract_feat(self, images):
        return self.neck(self.backbone(images))


@pytest.mark.parametrize('size', [256, 200])  # with 200 the levels are 50, 25, 13 and 7 wide
def test_feature_pyramid(size):
    fields = receptive_fields(Detector(), lambda model: run_dense_part(model, size))
    assert [fields[f'neck.lateral_convs.{level}.bn'] for level in range(4)] == [35, 91, 267, 427]
    # the finest level sees what the coarsest does and a 3x3 convolution of its own
    assert [fields[f'neck.fpn_convs.{level}.bn'] for level in range(4)] == [427 + 2 * jump for jump in (4, 8, 16, 32)]
    assert fields['rpn_head.bn'] == 427 + 2 * 32  # shared by all levels: the largest


@pytest.mark.parametrize(
    'norm',
    [nn.InstanceNorm2d(2, track_running_stats=False), nn.GroupNorm(1, 2), SN(2), IBN(2), PN(2), nn.BatchNorm2d(2)],
    ids=lambda norm: type(norm).__name__,
)
def test_statistics_of_norm_layers_do_not_count(norm):
    model = nn.Sequential(conv(3), norm, nn.ReLU(), conv(3), nn.BatchNorm2d(2))
    fields = receptive_fields(model, on_image(channels=2))
    assert fields['1'] == 3 and fields['4'] == 5


@pytest.mark.parametrize(
    'pool',
    [
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveMaxPool2d(2),
        Call(lambda x: x.mean((2, 3), keepdim=True)),
        Call(lambda x: x.sum(dim=-1, keepdim=True)),
        Call(lambda x: x.amax((-1, -2), True)),
        Call(lambda x: (x.flatten(2).softmax(-1) @ x.flatten(2).transpose(1, 2)).unsqueeze(-1)[:, :2]),
        Call(lambda x: F.scaled_dot_product_attention(x, x, x)),
    ],
    ids=str,
)
def test_pooling_over_the_image_sees_all_of_it(pool):
    model = nn.Sequential(conv(3), pool, nn.BatchNorm2d(2), conv(1), nn.BatchNorm2d(2))
    assert receptive_fields(model, on_image(channels=2)) == {'2': math.inf, '4': math.inf}


@pytest.mark.parametrize(
    'function',
    [
        lambda x: x.mean(1, keepdim=True).expand(-1, 2, -1, -1),
        lambda x: torch.max(x, -x),
        lambda x: x + torch.zeros_like(x),
        lambda x: torch.where(x > 0, x, 0),
        lambda x: torch.cat(x.split(1, 1), dim=1),
        lambda x: x.sigmoid() * x.detach(),
    ],
)
def test_what_works_position_by_position_changes_nothing(function):
    model = nn.Sequential(conv(3, 2), Call(function), conv(3), nn.BatchNorm2d(2))
    assert receptive_fields(model, on_image(channels=2))['3'] == 7


def test_written_into_a_buffer():
    def write(x):
        buffer = x.new_zeros(x.shape)
        buffer[:, :1] = x[:, :1]
        buffer += 1
        return buffer

    model = nn.Sequential(conv(3, 2), Call(write), conv(3), nn.BatchNorm2d(2))
    assert receptive_fields(model, on_image(channels=2))['3'] == 7


def test_regions_of_interest_have_none():
    align = RoIAlign(4)
    boxes = torch.tensor([[0, 0, 0, 20, 20.0]])
    model = nn.Sequential(
        conv(3),
        nn.BatchNorm2d(2),
        Call(lambda x: align(x, boxes)),
        nn.BatchNorm2d(2),
        conv(3),
        nn.BatchNorm2d(2),
        nn.Flatten(),
        nn.Linear(32, 2),
        nn.BatchNorm1d(2),
    )
    assert receptive_fields(model, on_image(channels=2)) == {'1': 3, '3': None, '5': None, '8': None}


def test_deformable_convolutions_have_none():
    model = nn.Sequential(conv(3), ModulatedDeformConv2dPack(2, 2, 3, padding=1), nn.BatchNorm2d(2))
    assert receptive_fields(model, on_image(channels=2))['2'] is None


def test_network_is_left_as_it_was():
    model = nn.Sequential(conv(3), nn.BatchNorm2d(2), nn.Sequential(nn.Dropout(), SN(2)))
    model[2].eval()
    modes = [m.training for m in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def broken(network):
        assert not torch.is_grad_enabled() and not any(m.training for m in network.modules())
        network(torch.rand(1, 2, 8, 8))
        raise RuntimeError('broken')

    with pytest.raises(RuntimeError, match='broken'):
        receptive_fields(model, broken)
    assert receptive_fields(nn.DataParallel(model), on_image(channels=2)) == {'1': 3, '2.1': 3}  # without the prefix
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not hasattr(model[0].weight, 'receptive_field') and torch.is_grad_enabled()
