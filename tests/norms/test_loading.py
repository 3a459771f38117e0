"""What is said when a layer loads the tensors of another norm, of other arguments, or of a BN."""

import copy
import re
import warnings

import pytest
import torch
from torch import nn

from mmnorm.norms import IBN, RBN, SN, SyncSN, checks

from .cases import CHANNELS, EVERY, build, described, randomized

STOCK = [dict(type='BN'), dict(type='GN', num_groups=4), dict(type='GN', num_groups=CHANNELS)]
OTHER_ARGUMENTS = [
    dict(type='IBN', track_running_stats=False),
    dict(type='SN', track_running_stats=False),
    dict(type='SN', affine=False),
    dict(type='SN', groups=2, hard=True),
    dict(type='SN', groups=2, batch_stat=False),
    dict(type='BGN', num_groups=CHANNELS),
    dict(type='GBGN', channel_groups=4),
    dict(type='GW', num_groups=2),
    dict(type='GW', num_groups=4, iterations=3),
]
ALL = STOCK + EVERY + OTHER_ARGUMENTS


def trained(cfg):
    """A layer with values that show what it computes."""
    layer = randomized(build(cfg))
    with torch.no_grad():
        for name in ('alpha', 'beta', 'mean_batch_size'):
            if hasattr(layer, name):
                getattr(layer, name).fill_(3.0 if name == 'mean_batch_size' else 0.3)
    if hasattr(layer, 'mean_batch_size'):
        layer.load_state_dict(layer.state_dict())
    return layer.eval()


def load(layer, state):
    """What is said (str; None if nothing is) while a layer loads strictly."""
    checks._warned.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try:
            layer.load_state_dict(copy.deepcopy(state), strict=True)
        except RuntimeError as error:
            return str(error)
    return '\n'.join(str(w.message) for w in caught) or None


@torch.no_grad()
@pytest.mark.parametrize('source_cfg', ALL, ids=described)
def test_a_layer_computes_what_the_file_is_of_or_says_that_it_does_not(source_cfg):
    source = trained(source_cfg)
    x = torch.randn(3, CHANNELS, 4, 6) * 2 + 1
    silent = []
    for target_cfg in ALL:
        if source_cfg in STOCK and target_cfg in STOCK:
            continue  # torch's own
        target = build(target_cfg)
        if load(target, source.state_dict()) is None and not torch.allclose(
            target.eval()(x), source(x), rtol=1e-3, atol=1e-3
        ):
            silent.append(described(target_cfg))
    assert not silent


@torch.no_grad()
def test_a_layers_own_file_is_loaded_without_a_word(cfg):
    assert load(build(cfg), trained(cfg).state_dict()) is None


@torch.no_grad()
def test_a_layer_computes_what_the_bn_did_or_says_that_it_does_not(cfg):
    bn, layer = randomized(nn.BatchNorm2d(CHANNELS)).eval(), build(cfg)
    x = torch.randn(3, CHANNELS, 4, 6) + 1
    said = load(layer, bn.state_dict())
    if cfg['type'] in ('FrozenBN', 'BRN') or cfg in (
        dict(type='EN'),
        dict(type='SyncEN'),
        dict(type='EN', mode='online'),
    ):
        assert said is None
    if not torch.allclose(layer.eval()(x), bn(x), rtol=1e-4, atol=1e-4):
        assert re.search('something else|does not compute|Unexpected key', said)


def test_ibn_and_bn_do_not_pass_for_each_other():
    model, ibn = nn.Sequential(nn.BatchNorm2d(CHANNELS)), nn.Sequential(IBN(CHANNELS))
    assert 'no instance_channels of 0 and' in load(ibn, model.state_dict())
    assert 'Unexpected key(s) in state_dict: "0.instance_channels"' in load(model, ibn.state_dict())
    assert load(ibn, ibn.state_dict()) is None


def test_arguments_of_the_file_that_differ_are_named():
    said = load(RBN(CHANNELS), RBN(CHANNELS, scale_stat='channel_std').state_dict())
    assert 'scale_statistic is channel_std in the checkpoint and channel_mean here, in the layer' in said


def test_many_layers_are_warned_of_once():
    def network(norm):
        return nn.Sequential(*(norm(CHANNELS) for _ in range(5)))

    assert load(network(IBN), network(nn.BatchNorm2d).state_dict()).count('instance_channels') == 1


@torch.no_grad()
def test_rbn_without_scaling_loads_into_one_with_it_as_it_was():
    source, layer, x = (
        randomized(RBN(CHANNELS, scale=False)).eval(),
        RBN(CHANNELS).eval(),
        torch.randn(2, CHANNELS, 4, 4),
    )
    layer.load_state_dict(source.state_dict())
    torch.testing.assert_close(layer(x), source(x))


def test_weights_of_another_number_of_groups_are_not_reshaped():
    assert 'size mismatch for mean_weight' in load(SN(6, groups=3, batch_stat=False), SN(6, groups=2).state_dict())


@pytest.mark.parametrize('arguments', [{}, dict(groups=2), dict(hard=True)], ids=str)
@pytest.mark.parametrize('norm', [SN, SyncSN])
def test_sn_starts_as_the_bn_it_was(norm, arguments):
    bn, layer = randomized(nn.BatchNorm2d(CHANNELS)).eval(), norm(CHANNELS, bn_share=1, **arguments).eval()
    x = torch.randn(2, CHANNELS, 4, 4)
    said = load(layer, bn.state_dict())
    assert 'bn_share=1' in said and 'never train' in said
    torch.testing.assert_close(layer(x), bn(x), rtol=1e-5, atol=1e-5)
    other = norm(CHANNELS, **arguments).eval()
    assert load(other, layer.state_dict()) is None
    torch.testing.assert_close(other(x), bn(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('share', [0.999, 1 / 3])
def test_a_share_below_1_trains(share):
    layer = SN(CHANNELS, bn_share=share)
    assert load(layer, nn.BatchNorm2d(CHANNELS).state_dict()) is None
    torch.testing.assert_close(layer.ratios()[0], torch.tensor([(1 - share) / 2, (1 - share) / 2, share]))
    layer(torch.randn(2, CHANNELS, 4, 4)).sin().sum().backward()
    assert layer.mean_weight.grad.abs().max() > 0


def test_a_share_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match='SN: bn_share is BN.s, which batch_stat=False leaves out'):
        SN(CHANNELS, batch_stat=False, bn_share=1)
    with pytest.raises(ValueError, match='bn_share must be a finite number above 0 and at most 1'):
        SN(CHANNELS, bn_share=0)
