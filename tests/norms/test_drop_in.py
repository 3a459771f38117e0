"""BN's place in other people's code: its arguments in its order, missing parts, torch.func."""

import copy
import inspect

import pytest
import torch
from torch import nn

from mmnorm.norms import NORMS, SYNC_TWINS

from .cases import CHANNELS, VARIANTS, build, described, randomized, seeded

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')
SHAPE = (4, CHANNELS, 4, 6)
WITH_STATISTICS = [
    cfg for cfg in [dict(type=name) for name in NORMS] + VARIANTS if issubclass(NORMS[cfg['type']], nn.BatchNorm2d)
]


def is_without_batch(cfg):
    """Whether a variant takes no batch statistics, or must not be without running ones."""
    return (
        cfg['type'] == 'FrozenBN'
        or cfg.get('hard')
        or cfg.get('batch_stat') is False
        or cfg.get('batch_groups') == 'sample'
        or cfg.get('estimate')
    )


@pytest.mark.parametrize('name', NORMS)
def test_positional_arguments_are_those_of_bn(name):
    layer = NORMS[name](CHANNELS, 1e-3, 0.2, False, name == 'FrozenBN', 'cpu', torch.float64)
    assert layer.eps == 1e-3 and layer.weight is None and layer.bias is None
    assert all(value.dtype == torch.float64 for value in layer.state_dict().values() if value.is_floating_point())
    if issubclass(NORMS[name], nn.BatchNorm2d):
        assert layer.momentum == 0.2 and (layer.running_mean is None) == (name != 'FrozenBN')
    own = set(inspect.signature(NORMS[name].__init__).parameters) - {'self', 'num_features', 'args', 'kwargs', 'stock'}
    for argument in own:
        kind = inspect.signature(NORMS[name].__init__).parameters[argument].kind
        assert kind is inspect.Parameter.KEYWORD_ONLY or argument in inspect.signature(nn.BatchNorm2d).parameters


@pytest.mark.parametrize('name', NORMS)
def test_an_argument_of_ours_in_a_place_of_bns_is_refused(name):
    with pytest.raises(TypeError, match=rf'{name}\({CHANNELS}\): affine must be True or False, got 2; .* by keyword: '):
        NORMS[name](CHANNELS, 1e-5, 0.1, 2)


def test_without_affine_gamma_is_1_and_beta_0(cfg):
    layer, bare = build(cfg), build(dict(cfg, affine=False))
    assert not any(name in dict(bare.named_parameters()) for name in ('weight', 'bias'))
    x = torch.randn(SHAPE)
    for mode in (True, False):
        torch.testing.assert_close(bare.train(mode)(x), layer.train(mode)(x))
    bare.load_state_dict(bare.state_dict(), strict=True)


@pytest.mark.parametrize('bn_cfg', [dict(type=name) for name in NORMS] + VARIANTS, ids=described)
def test_without_bias(bn_cfg):
    layer = build(dict(bn_cfg, bias=False))
    assert layer.bias is None and layer.weight is not None
    torch.testing.assert_close(layer(x := torch.randn(SHAPE)), build(bn_cfg)(x))


@pytest.mark.parametrize('bn_cfg', WITH_STATISTICS, ids=described)
def test_gradients_reach_what_was_put_in_the_place_of_a_parameter(bn_cfg):
    """As a hypernetwork or an old-style parametrization does: a tensor with a history, no parameter."""
    layer, plain = build(bn_cfg), build(bn_cfg)
    x, grad = torch.randn(SHAPE, requires_grad=True), torch.randn(SHAPE)
    sources = {}
    for name in list(dict(layer.named_parameters())):
        sources[name] = getattr(layer, name).detach().clone().requires_grad_()
        del layer._parameters[name]
        setattr(layer, name, sources[name] * 2 - sources[name].detach())
    for one in (layer, plain):
        if sources:
            (one(x) * grad).sum().backward()
    for name, source in sources.items():
        torch.testing.assert_close(source.grad, 2 * getattr(plain, name).grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('how', ['argument', 'set to None'])
@pytest.mark.parametrize('bn_cfg', WITH_STATISTICS, ids=described)
def test_without_running_statistics_evaluation_normalizes_by_the_batch(bn_cfg, how):
    if is_without_batch(bn_cfg):
        pytest.skip('has no such evaluation')
    if how == 'argument':
        layer = build(dict(bn_cfg, track_running_stats=False))
        assert layer.running_mean is layer.running_var is layer.num_batches_tracked is None
    else:  # what test-time adaptation does
        layer = build(bn_cfg)
        layer.running_mean = layer.running_var = None
    if bn_cfg['type'] == 'BRN':
        bn_cfg = dict(bn_cfg, warmup=5000)  # which has nothing to correct towards: BN
    x = torch.randn(SHAPE) + 1
    expected = build(bn_cfg).train()(x)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), expected)
    torch.testing.assert_close(layer.train()(x), expected)
    assert layer(torch.randn(0, *SHAPE[1:])).shape == (0, *SHAPE[1:])
    layer.load_state_dict(copy.deepcopy(layer.state_dict()), strict=True)


@pytest.mark.parametrize('bn_cfg', [None, *WITH_STATISTICS], ids=lambda cfg: described(cfg) if cfg else 'BN')
def test_track_running_stats_off_updates_nothing_and_evaluates_by_what_there_is(bn_cfg):
    """As torch's BN does, the first one here."""
    layer = build(bn_cfg) if bn_cfg else nn.BatchNorm2d(CHANNELS)
    if layer.running_mean is None:
        pytest.skip('keeps none')
    layer.running_mean.fill_(0.5)
    layer.running_var.fill_(2)
    layer.track_running_stats = False
    before, x = copy.deepcopy(layer.state_dict()), torch.randn(SHAPE) + 1
    layer(x)
    after = layer.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in ('running_mean', 'running_var', 'num_batches_tracked'))
    tracking = copy.deepcopy(layer).eval()
    tracking.track_running_stats = True
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), tracking(x))


@pytest.mark.parametrize('name', ['running_mean', 'running_var'])
@pytest.mark.parametrize('bn_cfg', WITH_STATISTICS, ids=described)
def test_one_of_two_running_statistics_alone_is_an_error_as_of_bn(bn_cfg, name):
    for layer in (nn.BatchNorm2d(CHANNELS), build(bn_cfg)):
        if layer.running_mean is None:
            pytest.skip('keeps none')
        setattr(layer, name, None)
        with pytest.raises(ValueError, match='running_mean and running_var must '):
            layer.train()(torch.randn(SHAPE))


@pytest.mark.parametrize('bn_cfg', WITH_STATISTICS, ids=described)
def test_without_the_count_of_batches(bn_cfg):
    layer = build(dict(bn_cfg, momentum=0.1))
    layer.num_batches_tracked = None
    x = torch.randn(SHAPE)
    for mode in (True, False):
        assert layer.train(mode)(x).isfinite().all()


def test_frozen_bn_whose_statistics_were_taken_says_so():
    layer = NORMS['FrozenBN'](CHANNELS)
    layer.running_mean = layer.running_var = None
    with pytest.raises(ValueError, match='FrozenBN normalizes by running statistics, and running_mean is None'):
        layer(torch.randn(SHAPE))


def test_frozen_bn_has_to_have_statistics():
    with pytest.raises(ValueError, match='track_running_stats=False leaves none'):
        NORMS['FrozenBN'](CHANNELS, track_running_stats=False)


@pytest.mark.parametrize('frozen', [False, True])
def test_reset_parameters_resets_everything(cfg, frozen):
    cfg = dict(cfg, frozen=frozen or cfg['type'] == 'FrozenBN')
    layer, fresh = randomized(build(cfg)), build(cfg)
    layer.train()(torch.randn(SHAPE))
    with seeded():
        layer.reset_parameters()
    for key, value in fresh.state_dict().items():
        assert torch.equal(layer.state_dict()[key], value), key
    for _ in range(5):  # what is no tensor is as new too, such as EN's count of batches
        x = torch.randn(SHAPE)
        torch.testing.assert_close(layer.train()(x), fresh.train()(x))
    for key, value in fresh.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key], value)


def test_meta_device_and_to_empty(cfg):
    """The recipe of sharded training: build without memory, allocate, reset."""
    layer = NORMS[cfg['type']](CHANNELS, device='meta', **{k: v for k, v in cfg.items() if k != 'type'})
    assert all(value.is_meta for value in layer.state_dict().values())
    layer = layer.to_empty(device='cpu')
    with seeded():
        layer.reset_parameters()
    x = torch.randn(SHAPE)
    torch.testing.assert_close(layer.train()(x), build(cfg).train()(x))


@pytest.mark.parametrize('name', [name for name in NORMS if name not in SYNC_TWINS.values()])
def test_torch_func_takes_gradients_of_evaluated_layers(name):
    layer = randomized(build(dict(type=name))).eval()
    parameters, buffers = dict(layer.named_parameters()), dict(layer.named_buffers())
    x = torch.randn(SHAPE)

    def loss(parameters):
        return torch.func.functional_call(layer, (parameters, buffers), (x,)).square().sum()

    found = torch.func.grad(loss)(parameters)
    if parameters:
        loss(parameters).backward()
    for key, p in parameters.items():
        torch.testing.assert_close(found[key], p.grad, rtol=1e-3, atol=1e-3)
