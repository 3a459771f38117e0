"""Weight normalization: ConvWN."""

import copy
import pickle
import warnings

import pytest
import torch
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS as DET
from mmengine.model import kaiming_init, normal_init
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval_for_single_model
from mmengine.runner.checkpoint import load_state_dict
from mmseg.registry import MODELS as SEG
from torch import nn
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import weight_norm

from mmnorm.blocks import ConvMABN, ConvWN, fuse_conv_norm
from mmnorm.norms import checks

WN = dict(type='ConvWN')
X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def forget_warnings(monkeypatch):
    monkeypatch.setattr(checks, '_warned', set())


def layers():
    """A layer that trains, whose g is not the norm of v, and torch's parametrization of the same g and v."""
    torch.manual_seed(0)
    arguments = dict(in_channels=4, out_channels=6, kernel_size=3, stride=2, padding=1, groups=2)
    ours, theirs = ConvWN(**arguments), weight_norm(nn.Conv2d(**arguments))
    ours(X)
    with torch.no_grad():
        ours.weight_g.uniform_(-1, 2)
        theirs.parametrizations.weight.original0.copy_(ours.weight_g.view(-1, 1, 1, 1))
        theirs.parametrizations.weight.original1.copy_(ours.weight)
        theirs.bias.copy_(ours.bias)
    return ours, theirs


@pytest.mark.parametrize('training', [True, False])
def test_it_is_torchs_weight_normalization_forward_and_backward(training):
    ours, theirs = (layer.double().train(training) for layer in layers())
    y, same = ours(X.double()), theirs(X.double())
    torch.testing.assert_close(y, same)
    for out in (y, same):
        out.square().sum().backward()
    g, v = theirs.parametrizations.weight.original0, theirs.parametrizations.weight.original1
    torch.testing.assert_close(ours.weight_g.grad, g.grad.flatten())
    torch.testing.assert_close(ours.weight.grad, v.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)


@pytest.mark.parametrize(
    'initialize',
    [
        kaiming_init,
        lambda layer: normal_init(layer, std=3),
        lambda layer: layer.weight.data.uniform_(-2, 2),
        lambda layer: nn.init.xavier_uniform_(layer.weight, 5),
        lambda layer: layer.reset_parameters(),
    ],
)
def test_an_initializer_sets_the_weight(initialize):
    ours, plain = ConvWN(4, 6, 3), nn.Conv2d(4, 6, 3)
    with torch.no_grad():
        ours.eval()(X)
    for layer in (ours.train(), plain):
        torch.manual_seed(1)
        initialize(layer)
        nn.init.zeros_(layer.bias)
    y = ours(X)  # training begins
    assert torch.equal(y, plain(X))
    torch.testing.assert_close(ours.weight_g, ours.weight.flatten(1).norm(dim=1))
    with torch.no_grad():
        ours.weight.mul_(3)
    torch.testing.assert_close(ours(X), y)  # its length is g now


def test_a_module_of_mmcv_initializes_it():
    torch.manual_seed(0)
    module = ConvModule(4, 512, 3, conv_cfg=WN, norm_cfg=dict(type='BN'))
    # mmcv's kaiming_init: deviation sqrt(2 / fan_out)
    deviation = float((2 / (512 * 9)) ** 0.5)
    assert float(module.conv.weight.detach().std()) == pytest.approx(deviation, rel=0.05)
    module(X)
    torch.testing.assert_close(module.conv.weight_g, module.conv.weight.flatten(1).norm(dim=1))


def test_a_checkpoint_of_a_plain_convolution_loads():
    plain, (ours, _) = nn.Conv2d(4, 6, 3, 2, 1, groups=2), layers()
    ours.load_state_dict(plain.state_dict(), strict=True)
    for mode in (False, True):
        torch.testing.assert_close(ours.train(mode)(X), plain(X))


@pytest.mark.parametrize('form', [weight_norm, pytest.param(old_weight_norm, id='old')])
@pytest.mark.filterwarnings('ignore:.*weight_norm.*:FutureWarning')
def test_a_checkpoint_of_torchs_weight_norm_loads(form):
    theirs, (ours, _) = form(nn.Conv2d(4, 6, 3, 2, 1, groups=2)), layers()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for mode in (False, True):
        torch.testing.assert_close(ours.train(mode)(X), theirs(X))


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize('trained', [True, False])
def test_copies_and_its_own_checkpoint_compute_the_same(copied, trained):
    ours = layers()[0] if trained else ConvWN(4, 6, 3, 2, 1, groups=2)
    again = ConvWN(4, 6, 3, 2, 1, groups=2)
    again.load_state_dict(ours.state_dict(), strict=True)
    for layer in (copied(ours), again):
        assert torch.equal(layer(X), ours(X))
        assert torch.equal(layer.weight_g, ours.weight_g)


def test_an_average_of_a_training_takes_g_along():
    """A copy that was made before the training began, and never trains itself."""
    ours, _ = layers()
    average = torch.optim.swa_utils.AveragedModel(ConvWN(4, 6, 3, 2, 1, groups=2))
    average.update_parameters(ours)
    torch.testing.assert_close(average.eval()(X), ours(X))


def test_a_filter_of_zeros_is_refused_where_a_training_begins():
    ours = ConvWN(4, 6, 3)
    nn.init.zeros_(ours.weight)
    nn.init.zeros_(ours.bias)
    with torch.no_grad():
        assert not ours(X).any()
    with pytest.raises(ValueError, match=r'ConvWN\(4, 6\): filters of zeros have no direction'):
        ours(X)


def test_a_convolution_that_levels_share_starts_once():
    ours = ConvWN(4, 4, 3, padding=1)
    ours(ours(X)).sum().backward()
    assert ours.weight.grad.isfinite().all() and ours.weight_g.grad.isfinite().all()


RESNET = dict(depth=18, base_channels=8, conv_cfg=WN, norm_eval=False, zero_init_residual=False)
NETWORKS = dict(
    detector=lambda: nn.Sequential(
        DET.build(dict(type='ResNet', **RESNET)),
        DET.build(dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=4, conv_cfg=WN)),
    ),
    segmentor=lambda: nn.Sequential(
        SEG.build(dict(type='ResNetV1c', stem_channels=8, **RESNET)),
        SEG.build(
            dict(
                type='FCNHead',
                in_channels=64,
                channels=8,
                num_classes=3,
                conv_cfg=WN,
                dropout_ratio=0,
                loss_decode=dict(type='CrossEntropyLoss'),
            )
        ),
    ),
)


@pytest.mark.parametrize('name', NETWORKS)
def test_a_network_starts_as_its_plain_twin_and_trains(name, monkeypatch):
    torch.manual_seed(0)
    model = NETWORKS[name]()
    for part in model:
        part.init_weights()
    monkeypatch.setitem(WN, 'type', 'Conv2d')
    plain = NETWORKS[name]()
    load_state_dict(plain, {key: value for key, value in model.state_dict().items() if 'weight_g' not in key})
    convolutions = [layer for layer in model.modules() if isinstance(layer, ConvWN)]
    assert len(convolutions) >= 20
    x = torch.randn(2, 3, 64, 64)
    outputs, same = ([out] if isinstance(out, torch.Tensor) else out for out in (model(x), plain(x)))
    for out, expected in zip(outputs, same, strict=True):
        torch.testing.assert_close(out, expected)
    sum(out.square().mean() for out in outputs).backward()
    for layer in convolutions:
        if layer.weight.grad is not None:  # a head that gives no loss here has some that are not used
            assert layer.weight_g.grad.isfinite().all() and layer.weight.grad.abs().max() > 0
            # Equation 3: a step along v changes nothing, g alone scales
            along = (layer.weight.grad * layer.weight).flatten(1).sum(1)
            torch.testing.assert_close(along, torch.zeros_like(along), rtol=0.0, atol=1e-4)
    assert sum(layer.weight.grad is not None for layer in convolutions) >= 20


@pytest.mark.parametrize('kind', [ConvMABN, ConvWN])
@pytest.mark.parametrize('whole', [True, False])
def test_bns_are_not_folded_into_a_weight_that_is_computed(kind, whole):
    """mmcv folds in each forward pass by the convolution's ``weight``, which is not what these compute with."""
    module = ConvModule(4, 6, 3, conv_cfg=dict(type=kind.__name__), norm_cfg=dict(type='BN'))
    module(X)
    with torch.no_grad():
        module.conv.weight.mul_(2).add_(0.1)
        module.eval()
        expected = module(X)
        with pytest.warns(UserWarning, match='efficient_conv_bn_eval stays off'):
            turn_on_efficient_conv_bn_eval_for_single_model(
                module
            ) if whole else module.turn_on_efficient_conv_bn_eval()
        assert torch.equal(module(X), expected)
        fused = fuse_conv_norm(module)
        torch.testing.assert_close(module(X), expected)
    # a filter less its mean scales as the filter does
    assert list(fused.left or fused.folded) == ['bn'] and bool(fused.left) == (kind is ConvWN)


def test_a_plain_convolution_still_folds_in_each_pass():
    module = ConvModule(4, 6, 3, norm_cfg=dict(type='BN'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        module.turn_on_efficient_conv_bn_eval()
    assert module.efficient_conv_bn_eval_forward is not None
