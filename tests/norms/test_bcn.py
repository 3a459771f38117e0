import pytest
import torch
from torch import nn

from mmnorm.blocks import replace_norms
from mmnorm.norms import BCN

from .cases import CHANNELS, randomized

SHAPE = (3, CHANNELS, 4, 5)


def bn_and_gn(layer):
    """The two layers of torch that compute what a BCN does: GN's affine is of each channel."""
    bn, gn = nn.BatchNorm2d(CHANNELS), nn.GroupNorm(layer.num_groups, CHANNELS)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    of_groups = {leaf: state.pop(leaf).repeat_interleave(CHANNELS // layer.num_groups) for leaf in ('weight', 'bias')}
    bn.load_state_dict({name.removeprefix('bn_'): value for name, value in state.items()})
    gn.load_state_dict(of_groups)
    return bn, gn


def test_it_is_bn_and_then_gn():
    """In training and evaluation."""
    layer = randomized(BCN(CHANNELS, num_groups=2))
    bn, gn = bn_and_gn(layer)
    for training in (True, False):
        x = torch.randn(SHAPE) * 2 + 1
        torch.testing.assert_close(layer.train(training)(x), gn(bn.train(training)(x)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.running_var, bn.running_var)


def test_the_micro_batch_form_trains_as_it_evaluates():
    layer, x = randomized(BCN(CHANNELS, estimate=True)), torch.randn(SHAPE)
    expected = layer.train()(x)
    torch.testing.assert_close(layer.eval()(x), expected)
    one = layer.train()(torch.randn(1, CHANNELS, 1, 1))  # a single value moves the estimates on as well
    assert one.isfinite().all()


def test_groups_of_one_channel_are_not_chosen_but_taken():
    for channels, groups in ((1, 1), (2, 1), (8, 4), (32, 16), (48, 24), (64, 32), (256, 32)):
        assert BCN(channels).num_groups == groups
    assert BCN(CHANNELS, num_groups=32).num_groups == BCN(CHANNELS, channels_per_group=1).num_groups == CHANNELS


@pytest.mark.parametrize('groups', [2, CHANNELS])  # with as many groups as channels all tensors have one shape
def test_a_bn_that_is_loaded_is_the_one_before_gn_and_is_said_to_compute_something_else(groups):
    layer, bn, x = BCN(CHANNELS, num_groups=groups), randomized(nn.BatchNorm2d(CHANNELS)), torch.randn(SHAPE)
    nn.init.zeros_(layer.weight)  # zero_init_residual, before the checkpoint
    with pytest.warns(UserWarning, match='BCN: a BN checkpoint is loaded, and GN follows BN here: '):
        layer.load_state_dict(bn.state_dict())
    torch.testing.assert_close(layer.eval()(x), nn.GroupNorm(groups, CHANNELS)(bn.eval()(x)), rtol=1e-4, atol=1e-5)
    bare = nn.BatchNorm2d(CHANNELS, affine=False).state_dict()
    with pytest.warns(UserWarning, match='BCN: the checkpoint has no channel_groups of the layer'):
        BCN(CHANNELS, affine=False).load_state_dict(bare)


def test_a_norm_in_its_place_gets_the_affine_of_the_groups_and_the_rest_is_said():
    model = nn.Sequential(randomized(BCN(CHANNELS, num_groups=2)))
    bcn, (_, gn) = model[0], bn_and_gn(model[0])
    with pytest.warns(UserWarning, match='bn_weight, bn_bias of BCN has no place in GN'):
        replace_norms(model, 'GN', '*', num_groups=2)
    assert torch.equal(model[0].weight, gn.weight) and torch.equal(model[0].bias, gn.bias)
    model[0] = bcn
    with pytest.warns(UserWarning, match='weight, bias of BCN has no place in BCN'):
        replace_norms(model, 'BCN', '*', num_groups=4)
    assert torch.equal(model[0].bn_weight, bcn.bn_weight) and torch.equal(model[0].weight, torch.ones(4))


def test_estimates_need_running_statistics():
    with pytest.raises(ValueError, match=r'BCN\(8\): estimate=True normalizes by running statistics, and '):
        BCN(CHANNELS, estimate=True, track_running_stats=False)
