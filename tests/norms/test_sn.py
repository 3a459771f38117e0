import copy
import warnings

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.nn import functional as F

from mmnorm.norms import SN, harden, ratios

from .cases import CHANNELS, build

IN, LN, BN = range(3)


def one_hot(layer, mean, var):
    with torch.no_grad():
        for weight, pick in ((layer.mean_weight, mean), (layer.var_weight, var)):
            weight.fill_(-100)[..., pick] = 100
    return layer


@pytest.mark.parametrize('hard', [False, True])
@pytest.mark.parametrize(
    'pick, single',
    [(IN, lambda: nn.InstanceNorm2d(6)), (LN, lambda: nn.GroupNorm(1, 6)), (BN, lambda: nn.BatchNorm2d(6))],
)
def test_one_hot_ratios_are_in_ln_or_bn(pick, single, hard):
    layer, single = one_hot(SN(6), pick, pick), single()
    if hard:
        layer.harden()
    x = torch.randn(3, 6, 5, 5) * 2 + 1
    torch.testing.assert_close(layer(x), single(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), single.eval()(x), rtol=1e-4, atol=1e-5)


def test_without_positions_only_ln_and_bn_are_mixed():
    layer, x = SN(6), torch.randn(5, 6)
    with torch.no_grad():
        layer.mean_weight.copy_(torch.tensor([9.0, 1.0, 2.0]))  # IN's weight plays no part
        layer.var_weight.copy_(torch.tensor([9.0, -1.0, 0.0]))
    w, u = layer.mean_weight[1:].softmax(0), layer.var_weight[1:].softmax(0)
    mean = w[0] * x.mean(1, keepdim=True) + w[1] * x.mean(0)
    var = u[0] * x.var(1, correction=0, keepdim=True) + u[1] * x.var(0, correction=0)
    torch.testing.assert_close(layer(x), (x - mean) / (var + layer.eps).sqrt())
    torch.testing.assert_close(one_hot(SN(6, hard=True), IN, IN)(x).shape, x.shape)


def test_one_value_per_sample_is_warned_about_once(recwarn):
    warnings.simplefilter('always')
    layer = SN(6)
    for _ in range(2):
        layer(torch.randn(4, 6, 1, 1))
    said = [str(w.message) for w in recwarn]
    assert len(said) == 1 and said[0].startswith('SN(6) normalizes an input with one value per channel of a sample')


def test_groups_have_weights_of_their_own():
    layer, x = SN(6, groups=2), torch.randn(3, 6, 5, 5)
    assert layer.mean_weight.shape == layer.var_weight.shape == (2, 3)
    with torch.no_grad():
        for weight in (layer.mean_weight, layer.var_weight):
            weight.copy_(torch.tensor([[100.0, 0, 0], [0, 0, 100.0]]))
    y = layer(x)
    torch.testing.assert_close(y[:, :3], F.instance_norm(x[:, :3]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y[:, 3:], F.batch_norm(x[:, 3:], None, None, training=True), rtol=1e-4, atol=1e-5)


def test_ratios_of_a_network():
    model = nn.Sequential(SN(6), nn.ReLU(), SN(6, groups=2), SN(6, batch_stat=False))
    with torch.no_grad():
        model[0].mean_weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
    found = ratios(model)
    assert list(found) == ['0', '2', '3']
    torch.testing.assert_close(found['0']['mean'], torch.tensor([1.0, 2.0, 3.0]).softmax(0))
    assert found['2']['var'].shape == (2, 3) and found['3']['var'].shape == (2,)
    for of_layer in found.values():
        for values in of_layer.values():
            torch.testing.assert_close(values.sum(-1), torch.ones(values.shape[:-1]))


def test_hardened_layer_computes_the_argmax_and_keeps_its_state():
    model = nn.Sequential(one_hot(SN(6), IN, BN), one_hot(SN(6, groups=2), LN, LN))
    expected = copy.deepcopy(model)
    assert harden(model) == {'0': (['IN'], ['BN']), '1': (['LN', 'LN'], ['LN', 'LN'])}
    assert not any('_weight' in name for name, _ in model.named_parameters())
    x = torch.randn(3, 6, 5, 5)
    torch.testing.assert_close(model(x), expected(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(ratios(model)['0']['mean'], torch.tensor([1.0, 0.0, 0.0]))
    # a hard layer takes what a trained network has learned
    other = nn.Sequential(SN(6, hard=True), SN(6, groups=2, hard=True))
    other.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(other.eval()(x), model.eval()(x))


def test_hardened_layer_computes_only_what_it_picked():
    layer = one_hot(SN(6), IN, LN)
    layer.harden()
    layer(torch.randn(3, 6, 5, 5))
    assert layer.num_batches_tracked == 0, 'BN has no part and must not be computed'


def test_all_bn_is_a_constant_affine_in_evaluation():
    layer = one_hot(SN(6), BN, BN)
    assert not layer.is_bn_in_evaluation
    layer.harden()
    assert layer.is_bn_in_evaluation and not one_hot(SN(6, hard=True), BN, LN).is_bn_in_evaluation
    x = torch.randn(3, 6, 5, 5)
    layer(x)
    with torch.no_grad():
        # a constant affine: what it does to a sample does not depend on the sample
        torch.testing.assert_close(
            layer.eval()(x) - layer(x - 1), (layer(x * 0 + 1) - layer(x * 0)), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize('kind', ['SN', 'SyncSN'])
def test_unbiased_keeps_the_running_statistics_that_the_authors_code_keeps(kind):
    layer = build(dict(type=kind, unbiased=True, momentum=0.25))
    mean, var = torch.zeros(CHANNELS), torch.ones(CHANNELS)
    for _ in range(3):
        x = torch.randn(3, CHANNELS, 2, 3) * 2 + 1
        layer(x)
        means, variances = x.mean((2, 3)), x.var((2, 3))  # unbiased
        batch = means.mean(0)
        mean = 0.75 * mean + 0.25 * batch
        var = 0.75 * var + 0.25 * ((variances + means.square()).mean(0) - batch.square())
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, var)


@pytest.mark.parametrize('shape', [(4, CHANNELS), (4, CHANNELS, 1, 1)])
def test_unbiased_needs_two_positions(shape):
    layer = nn.Sequential(build(dict(type='SN', unbiased=True)))
    with pytest.raises(ValueError, match='SN 0: unbiased=True divides by the number of positions minus 1'):
        layer(torch.randn(shape))


def of_values(layer, other):
    for name in ('mean_weight', 'var_weight'):
        getattr(layer, name).copy_(getattr(other, name))


def through_data(layer, other):
    averaged = ExponentialMovingAverage(nn.Sequential(layer), momentum=0.5, update_buffers=True)
    for _ in range(2):
        averaged.update_parameters(nn.Sequential(other))
    return averaged.module[0]


@torch.no_grad()
@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize(
    'change', [of_values, through_data, lambda layer, other: layer.load_state_dict(other.state_dict())]
)
def test_hard_ratios_follow_weights_that_are_changed_in_place(change, groups):
    """As averaged models do, and DistributedDataParallel, which sends the first rank's buffers to the others."""
    layer, x = SN(8, momentum=0.0, groups=groups, hard=True), torch.randn(3, 8, 4, 5)
    for pick in (2, 1, 0):
        other = SN(8, momentum=0.0, groups=groups)
        other.mean_weight[..., pick] = other.var_weight[..., (pick + 1) % 3] = 5
        other.harden()
        found = change(layer, other)
        changed = found if isinstance(found, SN) else layer
        for mode in (False, True):
            torch.testing.assert_close(changed.train(mode)(x), other.train(mode)(x))
