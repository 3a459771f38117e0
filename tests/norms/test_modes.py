"""Whether a network that trains holds its norms in evaluation mode, or evaluates: over the registry and in hosts."""

import copy
import pickle

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmengine.model import ExponentialMovingAverage, convert_sync_batchnorm
from torch import nn

from mmnorm.blocks import replace_norms
from mmnorm.norms import EN, PlaneNorm
from mmnorm.norms.modes import evaluating, keeping_modes
from mmnorm.statistics import trained_by_batch

from .cases import CHANNELS, build, randomized

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')
SHAPE = (4, CHANNELS, 4, 6)


def backbone(norm_cfg, **kwargs):
    torch.manual_seed(0)
    model = ResNet(
        18, base_channels=8, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1), norm_cfg=norm_cfg,
        **kwargs,
    )  # fmt: skip
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            randomized(layer)
    return model


def run(model, seed=0):
    x = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(seed))
    return torch.cat([out.flatten() for out in model(x)])


def held(model):
    return {layer.is_held for layer in model.modules() if isinstance(layer, PlaneNorm)}


def test_by_the_calls_of_train_and_eval(cfg):
    layer = build(cfg)
    if not isinstance(layer, PlaneNorm):
        pytest.skip('has no running statistics')
    frozen, x = layer.frozen, torch.randn(SHAPE)
    assert layer.is_held == frozen
    for calls, expected in (
        ((True,), frozen),
        ((True, False), True),  # norm_eval
        ((True, False, False), True),  # frozen stages, then norm_eval
        ((True, False, 'forward'), True),
        ((True, False, 'forward', False), False),  # the whole network is evaluated
        ((True, 'forward', False), False),
        ((True, 'forward', False, 'forward', True, False), True),  # the next epoch
        ((False,), False),
    ):
        for call in calls:
            layer(x) if call == 'forward' else layer.train(call)
        assert layer.is_held == expected, calls
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), convert_sync_batchnorm(layer)):
            assert twin.is_held == expected
        layer(x)


def test_layers_pickled_without_the_attributes_are_not_held(cfg):
    layer = build(cfg)
    if not isinstance(layer, PlaneNorm):
        pytest.skip('has no running statistics')
    del layer._fresh, layer._held
    for norm in (layer, pickle.loads(pickle.dumps(layer))):
        norm.eval()(torch.randn(SHAPE))
        assert not norm.is_held
        norm.train().eval()
        assert norm.is_held


def test_looking_at_modes_changes_none(cfg):
    layer = build(cfg)
    if not isinstance(layer, PlaneNorm):
        pytest.skip('has no running statistics')
    for modes in ((), (True,), (True, False), (False,)):
        for mode in modes:
            layer.train(mode)
        before = {key: value for key, value in vars(layer).items() if not isinstance(value, dict)}
        with keeping_modes(layer):
            layer.train()
        with evaluating(layer):
            layer(torch.randn(SHAPE))
        if layer.running_mean is not None:
            trained_by_batch(nn.Sequential(nn.BatchNorm2d(1), layer))
        assert before == {key: value for key, value in vars(layer).items() if not isinstance(value, dict)}


@pytest.mark.parametrize('frozen_stages', [-1, 1])
def test_norm_eval_of_a_real_backbone_is_bn_in_training_and_evalnorm_in_evaluation(frozen_stages):
    bn = backbone(dict(type='BN'), norm_eval=True, frozen_stages=frozen_stages)
    en = backbone(dict(type='EN', batch_size=2), norm_eval=True, frozen_stages=frozen_stages)
    en.load_state_dict(bn.state_dict())
    for seed in range(2):
        for model in (bn, en):
            model.train()
        assert held(en) == {True}
        assert torch.equal(run(en, seed), run(bn, seed)) and torch.equal(run(en, seed), run(bn, seed))
        for model in (bn, en):
            model.eval()  # a validation
        with torch.no_grad():
            expected = run(en, seed)
        torch.testing.assert_close(run(en, seed), expected)
        assert held(en) == {False} and not torch.allclose(expected, run(bn, seed), rtol=1e-2)


def test_averaged_models_evaluate_in_the_midst_of_a_training():
    model = backbone(dict(type='EN', batch_size=2), norm_eval=True)
    model.train()  # returns nothing
    averaged = ExponentialMovingAverage(model, update_buffers=True)
    run(model)
    averaged.eval()
    with torch.no_grad():
        expected = run(averaged)
    run(averaged)
    averaged.eval()
    torch.testing.assert_close(run(averaged), expected)
    assert held(averaged) == {False} and held(model) == {True}


def test_norms_that_are_put_in_are_not_held_by_that():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    replace_norms(model, 'EN', batch_size=2)
    assert isinstance(model.eval()[1], EN) and held(model) == {False}


def test_what_learns_nothing_keeps_no_activation(cfg):
    layer = build(cfg)
    if not isinstance(layer, PlaneNorm):
        pytest.skip('has no running statistics')
    layer.eval().requires_grad_(False)
    x, kept = torch.randn(4, CHANNELS, 32, 32, requires_grad=True), []
    layer(x)  # EN decides what it is at the first
    if not layer.is_bn_in_evaluation:
        pytest.skip('is no affine of its input in evaluation')
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(x)
    assert max(kept) == CHANNELS
