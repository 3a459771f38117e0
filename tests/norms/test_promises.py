"""What every layer promises, over the whole registry: a normalizer that is added later is held to all of it."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmengine.hooks import EMAHook  # noqa: F401 (registers what EMA needs)
from mmengine.model import (
    ExponentialMovingAverage,
    constant_init,
    convert_sync_batchnorm,
    revert_sync_batchnorm,
)
from mmengine.optim import build_optim_wrapper
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
from torch.nn import functional as F

from mmnorm.norms import NORMS, PlaneNorm

from .cases import CHANNELS, EVERY, build, described, randomized

SHAPE = (4, CHANNELS, 4, 6)
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')


def is_bn_like(layer):
    return isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None


def buffers_of(layer):
    return copy.deepcopy(dict(layer.named_buffers()))


def same_buffers(before, layer):
    return all(torch.equal(value, before[name]) for name, value in layer.named_buffers())


def without_correction(cfg):
    """BRN as BN, and BCN's estimates at rest: no gradient passes what moves there, which finite differences would see;
    with it they are in test_equations.
    """
    if cfg['type'] == 'BRN':
        return dict(cfg, r_max=1.0, d_max=0.0)
    return dict(cfg, momentum=0.0) if cfg.get('estimate') else cfg


# 1. gradients, types, memory formats


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('shape', [(3, CHANNELS, 6), (3, CHANNELS, 2, 3), (2, CHANNELS, 2, 1, 2)])
def test_gradcheck(cfg, shape, training):
    layer = randomized(build(without_correction(cfg)).double()).train(training)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *parameters), fast_mode=True)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('shape', [(3, CHANNELS, 5), (2, CHANNELS, 2, 3)])
def test_gradgradcheck(cfg, shape, training):
    layer = randomized(build(without_correction(cfg)).double()).train(training)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    assert torch.autograd.gradgradcheck(lambda x, *_: layer(x), (x, *parameters), fast_mode=True)


def test_derivatives_of_any_order(cfg):
    """The third derivative along a line: that of the second ones at its two ends."""
    if cfg['type'] in ('EN', 'SyncEN', 'PN') and 'virtual_batch_size' not in cfg:
        pytest.skip("torch's batch_norm and layer_norm themselves, whose third derivatives are wrong")
    layer = randomized(build(without_correction(cfg)).double()).train()
    x, direction = torch.randn(2, 2, CHANNELS, 2, 3, dtype=torch.float64)

    def derivative(step, order):
        y = layer(x + step * direction).sin().sum()
        for _ in range(order):
            (y,) = torch.autograd.grad(y, step, create_graph=True)
        return y.detach()

    def at(value):
        return torch.tensor(value, dtype=torch.float64, requires_grad=True)

    h = 1e-4
    differences = (derivative(at(h), 2) - derivative(at(-h), 2)) / (2 * h)
    torch.testing.assert_close(derivative(at(0.0), 3), differences, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('training', [True, False])
def test_gradient_penalty_and_hessian_vector_product(cfg, training):
    """A penalty trains by plain backward(), and torch.autograd.functional.hvp agrees with finite differences."""
    layer = randomized(build(without_correction(cfg)).double()).train(training)
    x, direction = torch.randn(2, 2, CHANNELS, 2, 3, dtype=torch.float64)

    def loss(x):
        return layer(x).pow(3).sum()

    def gradient(x, **kwargs):
        x = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(loss(x), x, **kwargs)
        return found, x

    h = 1e-5
    expected = (gradient(x + h * direction)[0] - gradient(x - h * direction)[0]) / (2 * h)
    scale = expected.abs().max()
    hvp = torch.autograd.functional.hvp(loss, x, direction)[1]
    torch.testing.assert_close(hvp, expected, rtol=1e-5, atol=1e-6 * scale)
    found, leaf = gradient(x, create_graph=True)
    (0.5 * found.square().sum()).backward()
    expected = torch.autograd.functional.hvp(loss, x, found.detach())[1]  # the Hessian is symmetric
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-7, atol=1e-9 * scale)


def test_graph_of_a_gradient_moves_running_statistics_on_once(cfg):
    layer = randomized(build(cfg))
    other = copy.deepcopy(layer)
    x = torch.randn(SHAPE)
    for norm, create_graph in ((layer, True), (other, False)):
        leaf = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(norm(leaf).square().sum(), leaf, create_graph=create_graph)
        if create_graph:
            found.square().sum().backward()
    assert same_buffers(buffers_of(layer), other)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_input_keeps_its_type_and_is_normalized_in_float32(cfg, dtype, training):
    layer = randomized(build(cfg)).train(training)
    if is_bn_like(layer):
        layer.running_mean.fill_(3)
    exact = copy.deepcopy(layer).double()
    x = (torch.randn(SHAPE) * 0.1 + 3).to(dtype)
    ours = x.clone().requires_grad_()
    with torch.autocast('cpu', dtype=dtype):
        y = layer(ours)
    assert y.dtype == dtype
    # a gradient along x, of which normalizers keep little: rounding must not pass for it
    grad = (x.float() - 3).to(dtype)
    y.backward(grad)
    theirs = x.double().requires_grad_()
    expected = exact(theirs)
    expected.backward(grad.double())
    assert ours.grad.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert (y.double() - expected).abs().max() < 4 * eps * expected.abs().max()
    gain = (layer.weight.abs().max() / 0.1) if training else 10.0  # what the layer multiplies a gradient by
    assert (ours.grad.double() - theirs.grad).abs().max() < 4 * eps * gain * grad.abs().max()
    for name, value in layer.named_buffers():
        assert not value.is_floating_point() or value.dtype == torch.float32, name


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('dtype, mean', [(torch.bfloat16, 300.0), (torch.float16, 1e4)])
def test_half_precision_layer_computes_in_float32(cfg, dtype, mean, training):
    """A pure half-precision module at a large mean: results, gradients and statistics are rounded once, at the end."""
    if cfg['type'] in ('EN', 'SyncEN') and training and 'virtual_batch_size' not in cfg:
        pytest.skip("torch's batch_norm, whose errors are up to 10 times as large")
    if cfg.get('estimate') and training:
        pytest.skip('normalizes by the running statistics, as the layer keeps them: in half precision')
    if cfg['type'] == 'MABN' and dtype == torch.float16:
        pytest.skip('keeps a mean square, which is beyond float16 at such a mean')
    layer = randomized(build(cfg))
    if is_bn_like(layer):
        layer.running_mean.fill_(mean)
    layer = layer.to(dtype).train(training)
    exact = copy.deepcopy(layer).double()  # of the same stored parameters
    x = (torch.randn(8, CHANNELS, 16, 16) * (mean / 100) + mean).to(dtype)
    grad = torch.randn_like(x) / 2**8  # sums stay within float16
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = layer(ours), exact(theirs)
    y.backward(grad)
    expected.backward(grad.double())
    found = [(y, expected), (ours.grad, theirs.grad)]
    found += [(p.grad, q.grad) for p, q in zip(layer.parameters(), exact.parameters())]
    found += [pair for pair in zip(layer.buffers(), exact.buffers()) if pair[0].is_floating_point()]
    for value, of_double in found:
        if value is not None and of_double.abs().max() > torch.finfo(dtype).tiny:
            assert (value.double() - of_double).abs().max() < 4 * torch.finfo(dtype).eps * of_double.abs().max()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_ratios_sum_to_1_in_half_precision(dtype):
    layer = randomized(build(dict(type='SN'))).to(dtype)
    for ratios in layer.ratios():
        torch.testing.assert_close(ratios.double().sum(), torch.ones((), dtype=torch.double), rtol=0, atol=1e-6)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_backward_keeps_no_more_than_the_input(cfg, dtype, training):
    """Every storage counts once; what is not the elements is small beside 64 channels of 47 x 47."""
    if cfg.get('tlu'):
        pytest.skip('an activation is a part of it, which keeps its own input as any does')
    layer, kept = build(cfg, 64).train(training), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(2, 64, 47, 47).to(dtype).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(x)
    assert sum(kept.values()) < 1.15 * x.untyped_storage().nbytes()
    assert y.requires_grad


@pytest.mark.parametrize('training', [True, False])
def test_channels_last_in_is_channels_last_out_of_the_same_values(cfg, training):
    layer = randomized(build(cfg)).train(training)
    other = copy.deepcopy(layer)
    inputs = [torch.randn(SHAPE), torch.randn(2, CHANNELS, 2, 3, 4)]
    for x, layout in zip(inputs, (torch.channels_last, torch.channels_last_3d)):
        ours, theirs = x.contiguous(memory_format=layout).requires_grad_(), x.clone().requires_grad_()
        y, expected = layer(ours), other(theirs)
        assert y.is_contiguous(memory_format=layout) and expected.is_contiguous()
        torch.testing.assert_close(y, expected.contiguous(memory_format=layout), rtol=1e-4, atol=1e-5)
        y.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4, check_stride=False)


def test_spatial_axes_are_only_positions(cfg):
    layer = randomized(build(cfg))
    x = torch.randn(SHAPE)
    for training in (True, False):
        flat, volume = copy.deepcopy(layer).train(training), copy.deepcopy(layer).train(training)
        expected = copy.deepcopy(layer).train(training)(x)
        torch.testing.assert_close(flat(x.flatten(2)).view(SHAPE), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(volume(x[:, :, None])[:, :, 0], expected, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=400)
@given(
    cfg=st.sampled_from(EVERY),
    channels=st.sampled_from([4, 8, 12]),
    n=st.integers(1, 4),
    h=st.integers(1, 6),
    w=st.integers(1, 6),
    offset=st.sampled_from([0, 50]),
    kind=st.sampled_from(['random', 'constant', 'strided']),
    training=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_any_input_gives_a_finite_result_and_gradient_or_says_why_not(
    cfg, channels, n, h, w, offset, kind, training, dtype
):
    layer = build(cfg, channels).to(torch.float64 if dtype == torch.float64 else torch.float32).train(training)
    x = torch.full((n, channels, h, w), 2.0) if kind == 'constant' else torch.randn(n, channels, h, w)
    x = (x + offset).to(dtype)
    if kind == 'strided':
        x = x.repeat_interleave(2, 3)[..., ::2]
    x, before = x.requires_grad_(), x.detach().clone()
    try:
        y = layer(x)
    except ValueError as error:
        # as good as nothing to take a variance of, or less than the groups of a sample that were asked for
        assert h * w * min(n, 2) <= 4 or channels * h * w < getattr(layer, 'num_groups', 1), error
        return
    y.backward(torch.ones_like(y))
    assert y.shape == x.shape and y.dtype == dtype and y.is_contiguous()
    assert y.isfinite().all() and x.grad.isfinite().all()
    assert torch.equal(x.detach(), before)
    assert all(value.isfinite().all() for value in layer.state_dict().values())


def test_constant_input_gives_the_bias_in_training(cfg):
    layer = randomized(build(cfg)).train()
    if getattr(layer, 'frozen', False):
        pytest.skip('normalizes by running statistics in training')
    if cfg['type'] in ('FRN', 'MABN'):
        pytest.skip('takes no mean off')
    if cfg['type'] == 'ILM':
        pytest.skip('beta depends on the input')
    if 'BCN' in cfg['type']:
        pytest.skip('its GN normalizes the betas of a group, or the constant that estimates leave')
    if cfg['type'] == 'BRN':
        layer.running_mean.fill_(2)  # else r and d say how far the batch is from them
    y = layer(torch.full(SHAPE, 2.0))
    expected = layer.bias.view(-1, 1, 1).expand_as(y)
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3)


def relative_error(value, exact):
    return float((value.double() - exact).norm() / exact.norm())


def errors_of_gradients(layer, x, grad):
    """Relative errors of a float32 layer's gradients, by those of the same layer in float64."""
    found = []
    for dtype in (torch.float32, torch.float64):
        copied = copy.deepcopy(layer).to(dtype)
        leaf = x.detach().clone().to(dtype).requires_grad_()
        copied(leaf).backward(grad.to(dtype))
        found.append(dict(x=leaf.grad, **{name: p.grad for name, p in copied.named_parameters()}))
    ours, exact = found
    return {name: relative_error(value, exact[name]) for name, value in ours.items()}


@pytest.mark.parametrize('positions', [(12, 12), (48, 48)])  # the short way and the other
def test_large_mean_leaves_gradients_as_precise_as_those_of_bn(cfg, positions):
    """At a mean of 1e3 deviations: sums over the elements are of centered values."""
    layer = randomized(build(cfg)).train()
    if cfg['type'] == 'PN':
        pytest.skip("torch's layer_norm: see test_identities")
    if cfg['type'] in ('RBN', 'SyncRBN') and layer.scale and layer.scale_stat == 'channel_mean':
        pytest.skip('the gate magnifies the rounding of a mean: it is held to the plain formula, in the next test')
    if 'BCN' in cfg['type']:
        pytest.skip('its GN compares the rounded means of channels: it is held to the plain formula, in the next test')
    if 'spatial_mean' in str(cfg) or 'spatial_std' in str(cfg):
        pytest.skip('calibrated elements are rounded to the type of x, at a mean as large')
    if is_bn_like(layer):
        layer.running_mean.fill_(1e3)  # statistics that a training has by then
    ours, bns = [], []
    for _ in range(4):  # a single mean may happen to be near a float32
        noise = torch.randn(8, CHANNELS, *positions)
        grad = torch.randn_like(noise) + 0.5 * noise
        ours.append(errors_of_gradients(layer, noise + 1e3, grad))
        bns.append(errors_of_gradients(randomized(nn.BatchNorm2d(CHANNELS)), noise + 1e3, grad))
    for name, margin in dict(x=6, weight=6, bias=2).items():
        errors, bn = (math.sqrt(sum(run.get(name, 0) ** 2 for run in runs)) for runs in (ours, bns))
        assert errors < margin * bn, (name, errors, bn)


def plain_rbn(layer, x):
    """rbn, Eq. 5 and 9, on the elements, with autograd's gradients."""
    weight, bias, center, scale, scale_bias = (
        p[:, None, None] for p in (layer.weight, layer.bias, layer.center_weight, layer.scale_weight, layer.scale_bias)
    )
    x = x + center * x.mean((2, 3), keepdim=True)
    x = F.batch_norm(x, None, None, None, None, True, 0.0, layer.eps)
    return x * torch.sigmoid(scale_bias + scale * x.mean((2, 3), keepdim=True)) * weight + bias


def plain_bcn(layer, x):
    """BN and GN, one after the other."""
    x = F.batch_norm(x, None, None, layer.bn_weight, layer.bn_bias, True, 0.0, layer.eps)
    weight, bias = (p.repeat_interleave(CHANNELS // layer.num_groups) for p in (layer.weight, layer.bias))
    return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)


@pytest.mark.parametrize('mean', [30, 100, 300, 3000])
@pytest.mark.parametrize(
    'type_, plain_formula, margins',
    [('RBN', plain_rbn, dict(x=4, center_weight=1)), ('BCN', plain_bcn, dict(x=8, weight=8, bn_weight=8, bn_bias=8))],
)
def test_gradients_are_of_the_plain_formulas_precision_at_large_means(type_, plain_formula, margins, mean):
    layer = randomized(build(dict(type=type_)))
    noise, grad = torch.randn(2, 8, CHANNELS, 32, 32)
    x, grad = noise + mean, grad + 0.5 * noise
    errors, gradients = errors_of_gradients(layer, x, grad), []
    for dtype in (torch.float32, torch.float64):
        copied, leaf = copy.deepcopy(layer).to(dtype), x.clone().to(dtype).requires_grad_()
        plain_formula(copied, leaf).backward(grad.to(dtype))
        gradients.append(dict(x=leaf.grad, **{name: p.grad for name, p in copied.named_parameters()}))
    plain, exact = gradients
    for name, margin in margins.items():
        assert errors[name] < margin * relative_error(plain[name], exact[name]), name


# a graph outlives the batch: later batches move the running statistics on in place


@pytest.mark.parametrize('modes', [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize('first', [4, 0])
def test_backward_after_later_batches(cfg, modes, first):
    """As for a batch by itself; nn.BatchNorm2d's evaluation gives, silently, gradients of the later statistics."""
    x, grad = torch.randn(2, first, *SHAPE[1:])
    found = []
    for later in (False, True):
        torch.manual_seed(1)
        layer, leaf = randomized(build(cfg)), x.clone().requires_grad_()
        y = layer.train(modes[0])(leaf)
        if later:
            layer.train(modes[1])(torch.randn(SHAPE) + 5)
            layer.train()(torch.randn(SHAPE) + 5)
        y.backward(grad)
        found.append([leaf.grad, *(p.grad for p in layer.parameters())])
    for ours, expected in zip(*found):
        assert ours is expected or torch.equal(ours, expected)


# 2. empty batches


@pytest.mark.parametrize('shape', [(0, CHANNELS, 4, 6), (0, CHANNELS, 5)])
@pytest.mark.parametrize('training', [True, False])
def test_empty_batch_leaves_statistics_alone_and_gives_zero_gradients(cfg, shape, training):
    layer = build(cfg).train(training)
    before = buffers_of(layer)
    x = torch.randn(shape, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert same_buffers(before, layer)
    assert all(p.grad is None or (p.grad == 0).all() for p in layer.parameters())


# 3. one value per channel


def test_one_value_per_statistic_raises_torchs_error_and_says_what_works(cfg):
    layer = build(cfg).train()
    if not is_bn_like(layer) or not layer.training or cfg.get('batch_stat') is False or cfg.get('estimate'):
        pytest.skip('takes no batch statistics')
    x = torch.randn(1, CHANNELS, 1, 1)
    if len(layer.running_mean) != CHANNELS:
        # one value per group of channels, where that many channels can be given
        layer, x = build(cfg, len(layer.running_mean)), torch.randn(1, len(layer.running_mean), 1, 1)
    with pytest.raises(ValueError) as theirs:
        nn.BatchNorm2d(x.shape[1])(x)
    with pytest.raises(ValueError) as ours:
        nn.Sequential(nn.Identity(), nn.Sequential(layer))(x)
    said = str(ours.value)
    assert said.startswith(f'{cfg["type"]} 1.0')
    if cfg['type'] != 'IBN' and not cfg.get('unbiased'):  # which need positions in any mode
        assert str(theirs.value) in said
        assert all(part in said for part in ("single_value='running'", 'PN', 'BGN', 'Sync', 'no norm'))


# 4. the input


@pytest.mark.parametrize('training', [True, False])
def test_input_is_never_modified_and_an_in_place_activation_may_follow(cfg, training):
    layer = randomized(build(cfg)).train(training)
    other = copy.deepcopy(layer)
    x = torch.randn(SHAPE)
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    for value, norm, inplace in zip(inputs, (layer, other), (True, False)):
        F.relu(norm(value), inplace=inplace).square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    assert torch.equal(inputs[0], x)


# 5. ranks: test_sync.py

# 6. norm_eval and frozen: also tests/blocks


def test_evaluation_mode_with_gradients_keeps_batch_statistics(cfg):
    layer = build(cfg).eval()
    before = buffers_of(layer)
    layer(torch.randn(SHAPE, requires_grad=True)).sum().backward()
    assert same_buffers(before, layer)


def test_frozen_survives_build_norm_layer_and_training(cfg):
    layer = randomized(build(dict(cfg, frozen=True, requires_grad=True)))
    before = copy.deepcopy(layer.state_dict())
    layer.train()
    x = torch.randn(SHAPE, requires_grad=True)
    layer(x).square().sum().backward()
    assert not list(layer.parameters()) and x.grad.abs().sum() > 0
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


# 7. weight decay


def test_norm_decay_mult_covers_all_parameters(cfg):
    layer = build(cfg)
    if not list(layer.parameters()):
        pytest.skip('has none')
    wrapper = build_optim_wrapper(
        nn.Sequential(layer),
        dict(optimizer=dict(type='SGD', lr=0.1, weight_decay=1e-4), paramwise_cfg=dict(norm_decay_mult=0)),
    )
    groups = wrapper.optimizer.param_groups
    assert sum(len(group['params']) for group in groups) == len(list(layer.parameters()))
    assert all(group['weight_decay'] == 0 for group in groups)


# 8. other people's functions


@torch.no_grad()
@pytest.mark.parametrize(
    'change',
    [
        convert_sync_batchnorm,
        nn.SyncBatchNorm.convert_sync_batchnorm,
        revert_sync_batchnorm,
        fuse_conv_bn,
        lambda model: revert_sync_batchnorm(convert_sync_batchnorm(model)),
    ],
)
def test_conversions_do_not_change_what_is_computed(cfg, change):
    model = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), randomized(build(cfg))).eval()
    x = torch.randn(2, 3, 6, 8)
    expected = copy.deepcopy(model)(x)
    torch.testing.assert_close(change(model)(x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_efficient_conv_bn_eval_changes_no_result(cfg):
    module = ConvModule(3, CHANNELS, 3, norm_cfg=cfg).eval()
    randomized(module.norm)
    x = torch.randn(2, 3, 6, 8)
    expected = module(x)
    module.turn_on_efficient_conv_bn_eval()
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)


def branch_sizes(norm):
    """Standard deviations of the branch of a residual block that ends with a norm, before and after a step of SGD."""
    torch.manual_seed(0)
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
    x, target = torch.randn(2, *SHAPE)
    parameters = [p for p in [*conv.parameters(), *norm.parameters()] if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    sizes = []
    for _ in range(2):
        branch = norm.train()(conv(x))
        sizes.append(float(branch.detach().std()))
        optimizer.zero_grad()
        (x + branch - target).square().mean().backward()
        optimizer.step()
    return sizes


def test_a_residual_branch_that_a_host_sets_to_0_starts_and_grows_as_with_bn_or_that_is_said(cfg, recwarn):
    warnings.simplefilter('always')
    layer, bn = build(cfg), nn.BatchNorm2d(CHANNELS)
    for norm in (layer, bn):
        constant_init(norm, 0)  # zero_init_residual=True
    said = [str(warning.message) for warning in recwarn if 'its output is not 0' in str(warning.message)]
    (start, after), (_, of_bn) = branch_sizes(layer), branch_sizes(bn)
    if layer.why_not_zero:
        assert len(said) == 1 and layer.why_not_zero in said[0] and start > 100 * of_bn
    else:
        assert not said and start == 0 and after < 4 * of_bn


# 9. state dicts


def test_bn_checkpoint_loads_strictly(cfg):
    layer = build(cfg)
    if not isinstance(layer, nn.BatchNorm2d):
        pytest.skip("batch-free: GroupNorm's keys")
    bn = randomized(nn.BatchNorm2d(CHANNELS))
    layer.load_state_dict(bn.state_dict(), strict=True)
    for leaf in {'weight', 'bias'} - {'weight' if getattr(layer, 'fold_bn', False) else ''}:
        torch.testing.assert_close(getattr(layer, layer.bn_parameters.get(leaf, leaf)), getattr(bn, leaf))
    if cfg['type'] == 'MABN':  # its running variance is a mean square
        torch.testing.assert_close(layer.running_var, bn.running_var + bn.running_mean.square())
    elif is_bn_like(layer) and layer.running_mean.shape == bn.running_mean.shape:
        torch.testing.assert_close(layer.running_mean, bn.running_mean)
    if is_bn_like(layer):
        assert set(bn.state_dict()) <= set(layer.state_dict())


@torch.no_grad()
def test_own_checkpoint_restores_the_layer(cfg):
    layer, other, x = randomized(build(cfg)), build(cfg), torch.randn(SHAPE)
    layer(x)
    other.load_state_dict(pickle.loads(pickle.dumps(layer.state_dict())), strict=True)
    assert torch.equal(other.eval()(x), layer.eval()(x))


def test_released_shapes_load(cfg):
    layer = randomized(build(cfg))
    if not isinstance(layer, nn.BatchNorm2d):
        pytest.skip('never released')
    released = {key: v.view(1, -1, 1, 1) if v.dim() == 1 else v for key, v in layer.state_dict().items()}
    if is_bn_like(layer):
        released['running_mean'] = layer.running_mean.view(1, -1, 1)
    other = build(cfg)
    other.load_state_dict(released, strict=True)
    assert all(torch.equal(other.state_dict()[key], value) for key, value in layer.state_dict().items())


# 10. everything else that handles modules: exports are in test_integration.py


@torch.no_grad()
def test_deepcopy_and_pickle(cfg):
    layer, x = randomized(build(cfg)), torch.randn(SHAPE)
    layer(x)
    expected = layer.eval()(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)


def test_exponential_moving_average(cfg):
    model = nn.Sequential(build(cfg))
    averaged = ExponentialMovingAverage(model, momentum=0.5, update_buffers=True)
    for _ in range(3):
        model(torch.randn(SHAPE))
        averaged.update_parameters(model)
    for key, value in averaged.module.state_dict().items():
        assert value.shape == model.state_dict()[key].shape and value.isfinite().all()
    averaged(torch.randn(SHAPE))


def running_statistics(layer):
    return {name: value for name, value in layer.named_buffers() if name.startswith('running_')}


def test_update_bn_gives_plain_averages(cfg):
    layer = build(cfg)
    if not is_bn_like(layer) or getattr(layer, 'frozen', False) or cfg.get('batch_stat') is False:
        pytest.skip('has no running statistics that are taken')  # frozen ones: see the next test
    if cfg.get('hard'):
        pytest.skip('picked IN, whose layer takes no batch statistics')
    batches = [torch.randn(SHAPE) + i for i in range(3)]
    one_by_one = []
    for batch in batches:
        single = copy.deepcopy(layer)
        single.momentum = 1.0
        single(batch)
        one_by_one.append(running_statistics(single))
    torch.optim.swa_utils.update_bn(batches, layer)
    for name, value in running_statistics(layer).items():
        if name == 'running_var' and cfg.get('estimate'):
            continue  # around the running mean of before
        torch.testing.assert_close(value, torch.stack([single[name] for single in one_by_one]).mean(0))
    assert layer.momentum == build(cfg).momentum


def one_forward(layer, batches):
    with torch.no_grad():
        for batch in batches:
            layer.train()(batch)


@pytest.mark.parametrize(
    'recollects', [torch.optim.swa_utils.update_bn, lambda batches, layer: one_forward(layer, batches)]
)
@pytest.mark.parametrize('trained', [True, False])
def test_what_training_taught_survives_a_recollection_of_statistics(cfg, trained, recollects):
    """By update_bn, precise BN, an adaptation to other data: at another batch size, and without gradients."""
    layer = build(cfg)
    if trained:
        for size in (4, 3, 4, 4, 4):
            layer(torch.randn(size, *SHAPE[1:], requires_grad=True)).sum().backward()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    recollects([torch.randn(1, *SHAPE[1:]) + 1 for _ in range(9)], nn.Sequential(layer))
    changed = {key for key, value in layer.state_dict().items() if not torch.equal(value, before[key])}
    assert changed <= {'running_mean', 'running_var', 'running_wm', 'running_cov', 'num_batches_tracked'}
    if not trained:
        return
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    for _ in range(4):
        layer.train()(torch.randn(3, *SHAPE[1:]))
    if 'EN' in cfg['type'] and not (cfg.get('batch_size') or cfg.get('virtual_batch_size')):
        assert layer.mean_batch_size < before['mean_batch_size']  # training teaches again
    if cfg.get('mode') == 'online':
        assert not torch.equal(layer.squared_gradients, before['squared_gradients'])


def test_update_bn_leaves_frozen_layers_alone(cfg):
    layer = randomized(build(dict(cfg, frozen=True)))
    before = copy.deepcopy(layer.state_dict())
    torch.optim.swa_utils.update_bn([torch.randn(SHAPE)], nn.Sequential(layer))
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


@torch.no_grad()
def test_half_precision_layer_evaluates(cfg):
    layer = randomized(build(cfg))
    layer(torch.randn(SHAPE))
    x = torch.randn(SHAPE).half()
    expected = layer.eval()(x.float())
    y = layer.half()(x)
    assert y.dtype == torch.half
    torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize('training', [True, False])
def test_no_positions_make_no_nan(cfg, training):
    layer = build(cfg).train(training)
    x = torch.randn(2, CHANNELS, 0, 3, requires_grad=True)
    layer(x).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())
    assert all(value.isfinite().all() for value in layer.state_dict().values())


@pytest.fixture(scope='module')
def mesh():
    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh('cpu', (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('placement', [Replicate(), Shard(0)], ids=repr)
def test_dtensors(cfg, training, placement, mesh):
    layer = randomized(build(cfg)).double()  # the two are computed in different ways, which need not round alike
    ours = distribute_module(copy.deepcopy(layer), mesh)
    x = torch.randn(SHAPE, dtype=torch.float64)
    inputs = x.requires_grad_(), distribute_tensor(x.detach(), mesh, [placement]).requires_grad_()
    for module, value in zip((layer, ours), inputs):
        module.train(training)(value).square().sum().backward()
    found = {name: p.grad.full_tensor() for name, p in ours.named_parameters() if p.grad is not None}
    expected = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    torch.testing.assert_close(dict(found, x=inputs[1].grad.full_tensor()), dict(expected, x=x.grad))
    state = {name: v.full_tensor() if hasattr(v, 'full_tensor') else v for name, v in ours.state_dict().items()}
    torch.testing.assert_close(state, dict(layer.state_dict()))


@pytest.mark.parametrize('training', [True, False])
def test_meta_tensors_have_shapes(cfg, training):
    layer = build(cfg).to('meta').train(training)
    x = torch.randn(SHAPE, device='meta', requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.is_meta and y.shape == x.grad.shape == x.shape


@pytest.mark.parametrize('method', ['iterative', 'zca'])
def test_a_sample_that_is_not_finite_or_overflows_leaves_the_others_alone(method):
    layer = randomized(build(dict(type='GW', num_groups=4, method=method)))
    x = torch.randn(3, CHANNELS, 4, 4)
    expected = layer(x)
    x[0, 0, 0, 0], x[1] = torch.nan, x[1] * 1e30
    x.requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    assert not y[0].isfinite().any(1).all() and torch.equal(y[2], expected[2])
    torch.testing.assert_close(y[1], layer.bias[:, None, None].expand_as(y[1]))  # as BN, whose 1 / sqrt(inf) is 0
    assert x.grad[1:].isfinite().all()


# bad input


def test_bad_input_is_named(cfg):
    layer = build(cfg)
    name = cfg['type']
    with pytest.raises(ValueError, match=rf'{name} was built for {CHANNELS} channels, got .*\(2, 5, 3, 3\)'):
        layer(torch.randn(2, 5, 3, 3))
    with pytest.raises(ValueError, match=f'{name} was built for {CHANNELS} channels'):
        layer(torch.randn(CHANNELS))
    with pytest.raises(TypeError, match=f'{name} normalizes floating point tensors, got torch.int64'):
        layer(torch.ones(SHAPE, dtype=torch.long))


NORM_EVAL = 'is in evaluation mode while the network trains'


def test_norm_eval_is_explained_once(cfg, recwarn):
    warnings.simplefilter('always')
    layer = build(cfg).train().eval()
    if not is_bn_like(layer) or getattr(layer, 'frozen', False) or cfg.get('hard') or cfg.get('batch_stat') is False:
        pytest.skip('evaluation mode changes nothing')
    for copied in (layer, copy.deepcopy(layer)):
        copied(torch.randn(SHAPE))
    said = [str(w.message) for w in recwarn if NORM_EVAL in str(w.message)]
    assert len(said) == 1 and said[0].startswith(cfg['type'])
    assert 'norm_eval=False' in said[0] and 'frozen=True' in said[0] and 'If the network only evaluates' in said[0]
    assert ('held=False' in said[0]) == ('EN' in cfg['type'])


def test_nothing_is_said_of_an_evaluation_with_gradients(cfg, recwarn):
    warnings.simplefilter('always')
    new, trained = build(cfg).eval(), build(cfg).train()
    trained(torch.randn(SHAPE))
    for layer in (new, trained.eval(), copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))):
        layer(torch.randn(SHAPE))
    assert not [w for w in recwarn if NORM_EVAL in str(w.message)]


def test_ids_are_unique():
    assert len({described(cfg) for cfg in EVERY}) == len(EVERY)


def lacks_variance(cfg):
    """Whether one value per channel is one for each of a layer's batch statistics, and all that is wrong with it."""
    over_channels = 'BGN' in cfg['type'] and not (cfg['type'] == 'GBGN' and cfg.get('channel_groups', 8) == 8)
    no_batch = not issubclass(NORMS[cfg['type']], PlaneNorm) or cfg.get('batch_stat') is False or over_channels
    no_batch |= cfg['type'] == 'FrozenBN'
    return not no_batch and cfg['type'] != 'IBN' and not cfg.get('unbiased') and not cfg.get('estimate')


@pytest.mark.parametrize('shape', [(1, CHANNELS, 1, 1), (1, CHANNELS)])
def test_single_value_running_trains_on_one_as_evaluation_computes_it(cfg, shape):
    if not lacks_variance(cfg):
        pytest.skip('takes no statistics of single values, or says something else of them')
    layer = randomized(build(dict(cfg, single_value='running'))).train()
    layer(torch.randn(SHAPE))
    before = buffers_of(layer)
    x = torch.randn(shape, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert same_buffers(before, layer) and layer.training and x.grad.isfinite().all()
    torch.testing.assert_close(layer.eval()(x), y)
    layer.train()(torch.randn(SHAPE))
    assert not same_buffers(before, layer)


def test_single_value_running_needs_running_statistics():
    with pytest.raises(ValueError, match=rf"SN\({CHANNELS}\): single_value='running' without running statistics"):
        build(dict(type='SN', single_value='running', track_running_stats=False))
