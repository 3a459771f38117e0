import pytest
import torch
from torch import nn

from mmnorm.norms import RBN, FrozenBN

from .cases import randomized


@torch.no_grad()
@pytest.mark.parametrize(
    'arguments',
    [
        dict(),
        dict(scale_stat='channel_std'),
        dict(center=False),
        dict(scale=False),
        dict(center_stat='spatial_std', scale_stat='spatial_mean'),
    ],
)
def test_rbn_and_frozen_bn_compute_what_the_bn_checkpoint_computed(arguments):
    bn, x = randomized(nn.BatchNorm2d(6)).eval(), torch.randn(2, 6, 5, 5)
    for layer in (FrozenBN(6), RBN(6, **arguments).eval()):
        layer.load_state_dict(bn.state_dict())
        torch.testing.assert_close(layer(x), bn(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('statistic', ['channel_std', 'spatial_std'])
def test_deviations_have_finite_gradients_on_constant_input(statistic):
    layer = randomized(RBN(6, center_stat=statistic, scale_stat=statistic))
    x = torch.ones(2, 6, 4, 4, requires_grad=True)
    layer(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
