import pytest
import torch
from torch import nn

from mmnorm.norms import BCN

from .cases import CHANNELS, randomized

SHAPE = (3, CHANNELS, 4, 5)


def test_it_is_bn_and_then_gn():
    """With BN's and GN's own layers, whose affine is of each channel; in training and evaluation."""
    layer = randomized(BCN(CHANNELS, num_groups=2))
    bn, gn = nn.BatchNorm2d(CHANNELS), nn.GroupNorm(2, CHANNELS)
    bn.load_state_dict({name: value.clone() for name, value in layer.state_dict().items() if 'group' not in name})
    gn.load_state_dict({leaf: layer.state_dict()[f'group_{leaf}'].repeat_interleave(4) for leaf in ('weight', 'bias')})
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


def test_a_bn_that_is_loaded_is_said_to_compute_something_else():
    with pytest.warns(UserWarning, match='BCN: a BN checkpoint is loaded, and GN follows BN here: '):
        BCN(CHANNELS).load_state_dict(nn.BatchNorm2d(CHANNELS).state_dict())
    bare = nn.BatchNorm2d(CHANNELS, affine=False).state_dict()
    with pytest.warns(UserWarning, match='BCN: the checkpoint has no channel_groups of the layer'):
        BCN(CHANNELS, affine=False).load_state_dict(bare)


def test_estimates_need_running_statistics():
    with pytest.raises(ValueError, match=r'BCN\(8\): estimate=True normalizes by running statistics, and '):
        BCN(CHANNELS, estimate=True, track_running_stats=False)
