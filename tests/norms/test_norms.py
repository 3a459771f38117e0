"""What every normalizer promises, and each one against the paper's equations spelled out on the full tensor."""
import copy
import pickle
import warnings

import pytest
import torch
from mmcv.cnn import build_norm_layer
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmnorm.norms import RBN, SN, FrozenBN, base

SHAPES = [(4, 6, 7), (3, 6, 5, 4), (2, 6, 3, 2, 4)]
NORMS = [SN, RBN, FrozenBN]
TRAINED = [SN, RBN]


def spread(v, x):
    return v.view(1, -1, *[1] * (x.dim() - 2))


def reference_sn(layer, x, batch_mean, batch_var):
    spatial = tuple(range(2, x.dim()))
    w, u = layer.mean_weight.softmax(0), layer.var_weight.softmax(0)
    mean = (w[0] * x.mean(spatial, keepdim=True) + w[1] * x.mean((1, *spatial), keepdim=True) + w[2] * batch_mean)
    var = (u[0] * x.var(spatial, correction=0, keepdim=True)
           + u[1] * x.var((1, *spatial), correction=0, keepdim=True) + u[2] * batch_var)
    return (x - mean) / (var + layer.eps).sqrt() * spread(layer.weight, x) + spread(layer.bias, x)


def centered_rbn(layer, x):
    return x + spread(layer.center_weight, x) * x.mean(tuple(range(2, x.dim())), keepdim=True)


def reference_rbn(layer, x, batch_mean, batch_var):
    normalized = (centered_rbn(layer, x) - batch_mean) / (batch_var + layer.eps).sqrt()
    feature = normalized.mean(tuple(range(2, x.dim())), keepdim=True)
    gate = torch.sigmoid(spread(layer.scale_weight, x) * feature + spread(layer.scale_bias, x))
    return normalized * gate * spread(layer.weight, x) + spread(layer.bias, x)


REFERENCE = {SN: reference_sn, RBN: reference_rbn}


def randomised(layer):
    with torch.no_grad():
        for value in (*layer.parameters(), layer.running_mean):
            value.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('norm', TRAINED)
def test_equals_the_papers_equations_forward_and_backward(norm, shape, training):
    torch.manual_seed(0)
    layer = randomised(norm(6).double()).train(training)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    if training:
        over = (0, *range(2, x.dim()))
        source = centered_rbn(layer, x) if norm is RBN else x
        statistics = source.mean(over, keepdim=True), source.var(over, correction=0, keepdim=True)
    else:
        statistics = spread(layer.running_mean, x), spread(layer.running_var, x)
    expected = REFERENCE[norm](layer, x, *statistics)
    inputs = (x, *layer.parameters())
    expected_grads = torch.autograd.grad(expected, inputs, grad)
    y = layer(x)
    torch.testing.assert_close(y, expected)
    for ours, theirs in zip(torch.autograd.grad(y, inputs, grad), expected_grads):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('norm', TRAINED)
def test_gradcheck(norm, training):
    layer = randomised(norm(3).double()).train(training)
    x = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *params: layer(x), (x, *layer.parameters()))


@pytest.mark.parametrize('index, single', [(0, nn.InstanceNorm2d(6)), (1, nn.GroupNorm(1, 6)), (2, nn.BatchNorm2d(6))])
def test_sn_with_one_hot_ratios_is_in_ln_or_bn(index, single):
    layer = SN(6)
    with torch.no_grad():
        for weight in (layer.mean_weight, layer.var_weight):
            weight.fill_(-100)[index] = 100
    x = torch.randn(3, 6, 5, 5) * 2 + 1
    torch.testing.assert_close(layer(x), single(x))


@pytest.mark.parametrize('momentum', [0.1, None])
@pytest.mark.parametrize('norm', TRAINED)
def test_running_statistics_are_kept_as_torch_keeps_them(norm, momentum):
    ours, bn = norm(6, momentum=momentum), nn.BatchNorm2d(6, momentum=momentum)
    for _ in range(3):
        x = torch.randn(3, 6, 5, 5) * 2 + 1
        ours(x)
        bn(x)
    torch.testing.assert_close(ours.running_mean, bn.running_mean)
    torch.testing.assert_close(ours.running_var, bn.running_var)
    assert ours.num_batches_tracked == bn.num_batches_tracked


def bn_checkpoint():
    bn = nn.BatchNorm2d(6)
    with torch.no_grad():
        bn.weight.normal_()
        bn.bias.normal_()
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 2)
    return bn.eval()


@pytest.mark.parametrize('norm', NORMS)
def test_bn_checkpoint_loads_strictly(norm):
    bn = bn_checkpoint()
    layer = norm(6)
    layer.load_state_dict(bn.state_dict(), strict=True)
    torch.testing.assert_close(layer.running_mean, bn.running_mean)
    assert set(bn.state_dict()) <= set(layer.state_dict())


def test_frozen_bn_and_rbn_compute_what_the_bn_checkpoint_computed():
    bn, x = bn_checkpoint(), torch.randn(2, 6, 5, 5)
    for layer in (FrozenBN(6), RBN(6).eval()):
        layer.load_state_dict(bn.state_dict())
        torch.testing.assert_close(layer(x), bn(x))
    unfolded = RBN(6, fold_bn=False).eval()
    unfolded.load_state_dict(bn.state_dict())
    assert not torch.allclose(unfolded(x), bn(x), atol=1e-2)


def test_own_rbn_checkpoint_is_not_folded_again():
    layer = randomised(RBN(6))
    other = RBN(6)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)


@pytest.mark.parametrize('norm', TRAINED)
def test_released_shapes_load(norm):
    layer = randomised(norm(6))
    released = {key: v.view(1, 6, 1, 1) if v.shape == (6, ) else v for key, v in layer.state_dict().items()}
    released['running_mean'] = released['running_mean'].view(1, 6, 1)
    other = norm(6)
    other.load_state_dict(released, strict=True)
    for key, value in layer.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)


@pytest.mark.parametrize('cfg', [dict(type='FrozenBN'), dict(type='SN', frozen=True), dict(type='RBN', frozen=True)])
def test_frozen_survives_build_norm_layer_and_training(cfg):
    name, layer = build_norm_layer(dict(cfg, requires_grad=True), 6, postfix=1)
    assert name == 'bn1'
    before = copy.deepcopy(layer.state_dict())
    layer.train()
    x = torch.randn(3, 6, 5, 5, requires_grad=True)
    layer(x).sum().backward()
    assert not list(layer.parameters()) and x.grad.abs().sum() > 0
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


@pytest.mark.parametrize('norm', NORMS)
def test_empty_batch_leaves_statistics_alone_and_gives_zero_gradients(norm):
    layer = norm(6).train()
    before = copy.deepcopy(dict(layer.named_buffers()))
    x = torch.randn(0, 6, 5, 5, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert all(torch.equal(before[name], buffer) for name, buffer in layer.named_buffers())
    assert all((p.grad == 0).all() for p in layer.parameters())


@pytest.mark.parametrize('norm', TRAINED)
def test_one_value_per_channel_raises_torchs_error(norm):
    x = torch.randn(1, 6, 1, 1)
    with pytest.raises(ValueError) as theirs:
        nn.BatchNorm2d(6)(x)
    with pytest.raises(ValueError) as ours:
        norm(6)(x)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize('norm', NORMS)
def test_bad_input_is_named(norm):
    with pytest.raises(ValueError, match=rf'{norm.__name__} was built for 6 channels, got .*\(2, 5, 3, 3\)'):
        norm(6)(torch.randn(2, 5, 3, 3))
    with pytest.raises(TypeError, match=f'{norm.__name__} normalises floating point tensors, got torch.int64'):
        norm(6)(torch.ones(2, 6, 3, 3, dtype=torch.long))


@pytest.mark.parametrize('norm', TRAINED)
def test_norm_eval_is_explained_once(norm, monkeypatch):
    monkeypatch.setattr(base, '_warned', set())
    layers, x = [norm(6).eval(), norm(6).eval()], torch.randn(2, 6, 3, 3)
    with pytest.warns(UserWarning, match=f'{norm.__name__} is in evaluation mode while the network trains') as caught:
        for layer in layers:
            layer(x)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        monkeypatch.setattr(base, '_warned', set())
        norm(6, frozen=True)(x)
        with torch.no_grad():
            layers[0](x)


@pytest.mark.parametrize('norm', TRAINED)
def test_norm_decay_mult_covers_control_parameters(norm):
    wrapper = build_optim_wrapper(
        nn.Sequential(norm(6)),
        dict(optimizer=dict(type='SGD', lr=0.1, weight_decay=1e-4), paramwise_cfg=dict(norm_decay_mult=0)))
    groups = wrapper.optimizer.param_groups
    assert sum(len(group['params']) for group in groups) == len(list(norm(6).parameters()))
    assert all(group['weight_decay'] == 0 for group in groups)


@pytest.mark.parametrize('norm', NORMS)
def test_deepcopy_and_pickle(norm):
    layer, x = randomised(norm(6)).eval(), torch.randn(2, 6, 3, 3)
    with torch.no_grad():
        expected = layer(x)
        assert torch.equal(copy.deepcopy(layer)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)


@pytest.mark.parametrize('norm', NORMS)
def test_autocast_keeps_channels_last(norm):
    x = torch.randn(2, 6, 8, 8).contiguous(memory_format=torch.channels_last).bfloat16().requires_grad_()
    layer = norm(6)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)
    assert layer.running_mean.dtype == torch.float32


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('norm', NORMS)
def test_in_place_activation_may_follow(norm, training):
    layer = randomised(norm(6)).train(training)
    x = torch.randn(3, 6, 5, 5)
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    for value, inplace in zip(inputs, (True, False)):
        nn.functional.relu(layer(value), inplace=inplace).square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    assert torch.equal(inputs[0], x)
