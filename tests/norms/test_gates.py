"""Norms whose weight is multiplied by a gate, and how they start from a BN, which has none."""

import copy
import math

import pytest
import torch
from torch import nn

from mmnorm.norms import IEBN, RBN

from .cases import CHANNELS, randomized

STARTS = {RBN: 1, IEBN: -1}
pytestmark = pytest.mark.parametrize('norm', STARTS)


@torch.no_grad()
def test_a_layer_computes_what_the_bn_did(norm):
    bn, layer, x = randomized(nn.BatchNorm2d(CHANNELS)).eval(), norm(CHANNELS).eval(), torch.randn(2, CHANNELS, 5, 5)
    layer.load_state_dict(bn.state_dict())
    torch.testing.assert_close(layer(x), bn(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_fold_bn_false_leaves_the_weight_which_the_gate_makes_smaller(norm):
    bn, layer = randomized(nn.BatchNorm2d(CHANNELS)).eval(), norm(CHANNELS, fold_bn=False).eval()
    layer.load_state_dict(bn.state_dict())
    assert torch.equal(layer.weight, bn.weight)
    x, beta, gate = torch.randn(2, CHANNELS, 5, 5), bn.bias[:, None, None], 1 / (1 + math.exp(-STARTS[norm]))
    torch.testing.assert_close(layer(x) - beta, gate * (bn(x) - beta), rtol=1e-4, atol=1e-5)


def test_folding_is_said_once(norm):
    said = rf'{norm.__name__}: a BN checkpoint is loaded; its weights are divided by sigmoid\({STARTS[norm]}\)'
    with pytest.warns(UserWarning, match=said) as warned:
        for _ in range(2):
            norm(CHANNELS).load_state_dict(nn.BatchNorm2d(CHANNELS).state_dict())
    assert len(warned) == 1


def test_own_checkpoint_is_not_folded_again(norm):
    layer, other = randomized(norm(CHANNELS)), norm(CHANNELS)
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert torch.equal(other.weight, layer.weight)
