import warnings

import pytest
import torch
from torch import nn

from mmnorm.norms import FRN, TLU

from .cases import CHANNELS, randomized

SHAPE = (3, CHANNELS, 4, 5)


def test_each_channel_of_a_sample_has_a_quadratic_mean_of_1():
    y = FRN(CHANNELS, affine=False)(torch.randn(SHAPE) * 7 + 3)
    torch.testing.assert_close(y.square().mean((2, 3)), torch.ones(SHAPE[:2]))


def test_a_layer_with_a_threshold_is_the_layer_and_a_tlu():
    layer, x = randomized(FRN(CHANNELS, tlu=True)), torch.randn(SHAPE)
    plain, tlu = FRN(CHANNELS), TLU(CHANNELS)
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if name != 'tau'})
    tlu.load_state_dict(dict(tau=layer.tau))
    assert torch.equal(layer(x), tlu(plain(x)))


def test_a_tlu_starts_as_relu_and_cuts_each_channel_at_its_own_threshold():
    tlu, x = TLU(CHANNELS), torch.randn(SHAPE)
    assert torch.equal(tlu(x), x.relu())
    with torch.no_grad():
        tlu.tau.copy_(torch.linspace(-1, 1, CHANNELS))
    y = tlu(x)
    for channel, tau in enumerate(tlu.tau.tolist()):
        assert torch.equal(y[:, channel], x[:, channel].clamp(min=tau))
    y.sum().backward()
    assert torch.equal(tlu.tau.grad, (x < tlu.tau[:, None, None]).sum((0, 2, 3)).to(x))


def test_a_tlu_refuses_other_channels():
    with pytest.raises(ValueError, match='TLU was built for 8 channels, got an input of shape'):
        TLU(CHANNELS)(torch.randn(2, 5, 3, 3))
    with pytest.raises(ValueError, match='TLU: num_features must be a positive integer, got 0'):
        TLU(0)


def test_of_one_position_the_sign_is_left_unless_eps_is_learned():
    x = torch.randn(4, CHANNELS, 1, 1)
    with pytest.warns(UserWarning, match='^FRN 0 normalizes an input with one value per channel .* learnable_eps=True'):
        y = nn.Sequential(FRN(CHANNELS))(x)
    torch.testing.assert_close(y, x.sign(), rtol=0, atol=1e-2)
    layer = FRN(CHANNELS, learnable_eps=True)
    with torch.no_grad():
        layer.eps_l.fill_(-1)  # of which the size counts
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        y = layer(x)
    torch.testing.assert_close(y, x / (x.square() + 1 + layer.eps).sqrt())
    y.square().sum().backward()
    assert layer.eps_l.grad > 0  # as it grows, its size falls and the outputs grow
