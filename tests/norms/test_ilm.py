import pytest
import torch
from torch import nn

from mmnorm.norms import ILM

from .cases import CHANNELS, randomized

SHAPE = (3, CHANNELS, 4, 5)


@torch.no_grad()
@pytest.mark.parametrize(
    'arguments, groups', [(dict(num_groups=2), 2), (dict(base='IN'), CHANNELS), (dict(base='LN', num_groups=4), 1)]
)
def test_whose_decoders_are_0_adds_a_half_to_the_gamma_of_its_base(arguments, groups):
    layer, base = randomized(ILM(CHANNELS, **arguments)), nn.GroupNorm(groups, CHANNELS)
    layer.weight_decoder.zero_()
    layer.bias_decoder.zero_()
    base.load_state_dict(dict(weight=layer.weight + 0.5, bias=layer.bias))
    x = torch.randn(SHAPE)
    torch.testing.assert_close(layer(x), base(x))


@pytest.mark.parametrize('channels, keys, embedded', [(8, 1, 2), (24, 2, 2), (64, 4, 2), (256, 16, 1), (1024, 64, 4)])
def test_key_groups_are_of_16_channels_where_these_divide(channels, keys, embedded):
    layer = ILM(channels)
    assert layer.embedding.shape == (embedded, keys)
    assert layer.weight_decoder.shape == layer.bias_decoder.shape == (keys, embedded)


def test_predictors_start_at_random_as_those_of_linear_do():
    first, second = ILM(1024), ILM(1024)
    for name in ILM.control_parameters:
        value, bound = getattr(first, name), getattr(first, name).shape[1] ** -0.5
        assert not torch.equal(value, getattr(second, name))
        assert 0.9 * bound < value.abs().max() <= bound and abs(value.mean()) < bound / 4


def test_one_value_in_a_group_is_refused():
    with pytest.raises(ValueError, match='^ILM 0 with 8 groups has one value per group in an input of shape'):
        nn.Sequential(ILM(CHANNELS, base='IN'))(torch.randn(2, CHANNELS, 1, 1))
