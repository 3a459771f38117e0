"""Whitening over the batch: what a layer starts from, what evaluation takes, and what other data makes of that."""

import pytest
import torch
from torch import nn

from mmnorm import perturbed, recollect
from mmnorm.norms import BW, GW, SW
from mmnorm.norms.sw import MEMBERS

from .cases import CHANNELS, build, randomized
from .test_equations import newton, sw

TRACKED = 'matrix', 'covariance'


def correlated(*shape):
    """Elements whose channels are correlated, with means and deviations of their own."""
    mixing = torch.eye(CHANNELS, dtype=torch.float64) + torch.randn(CHANNELS, CHANNELS, dtype=torch.float64) / 3
    return torch.einsum('dc,nc...->nd...', mixing, torch.randn(shape, dtype=torch.float64) + 1)


def covariances(*batches, groups=2):
    rows = torch.cat([x.transpose(0, 1).flatten(1) for x in batches], 1)
    return torch.stack([torch.cov(group, correction=0) for group in rows.chunk(groups)])


@pytest.mark.parametrize('channels, arguments, size', [(96, {}, 48), (8, {}, 8), (96, dict(num_groups=4), 24)])
def test_groups_are_as_large_as_64_channels_allow_or_as_said(channels, arguments, size):
    layer = BW(channels, **arguments)
    assert layer.running_wm.shape == (channels // size, size, size)


@torch.no_grad()
def test_enough_iterations_decorrelate_the_channels_of_a_group():
    y = BW(CHANNELS, num_groups=2, iterations=15).double()(correlated(16, CHANNELS, 8, 8))
    torch.testing.assert_close(covariances(y), torch.eye(4).double().expand(2, 4, 4), rtol=0, atol=1e-4)


@pytest.mark.parametrize('tracked', TRACKED)
def test_one_channel_in_a_group_is_bn(tracked):
    layer, bn = randomized(BW(CHANNELS, channels_per_group=1, tracked=tracked)), nn.BatchNorm2d(CHANNELS)
    bn.load_state_dict(layer.state_dict(), strict=False)
    x = torch.randn(4, CHANNELS, 5, 6) * 2 + 1
    torch.testing.assert_close(layer(x), bn(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.running_var, bn.running_var)


@torch.no_grad()
@pytest.mark.parametrize('tracked, tolerance', [('matrix', 1e-5), ('covariance', 1e-2)])
def test_a_bn_checkpoint_evaluates_as_it_did(tracked, tolerance):
    """With a running covariance as nearly as Newton's iterations come."""
    bn, layer = randomized(nn.BatchNorm2d(CHANNELS)).eval(), BW(CHANNELS, channels_per_group=4, tracked=tracked).eval()
    with pytest.warns(UserWarning, match='BW: a BN checkpoint is loaded; the channels of a group are taken to be unco'):
        layer.load_state_dict(bn.state_dict())
    x = torch.randn(2, CHANNELS, 5, 5)
    torch.testing.assert_close(layer(x), bn(x), rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_evaluation_takes_the_average_of_the_matrices_not_the_matrix_of_the_average():
    matrix, covariance = (BW(CHANNELS, num_groups=2, momentum=None, tracked=tracked).double() for tracked in TRACKED)
    batches = [correlated(4, CHANNELS, 6, 5) for _ in range(3)]
    for layer in (matrix, covariance):
        for x in batches:
            layer(x)
    each = [covariances(x) for x in batches]
    roots = [torch.stack([newton(group + 1e-5 * torch.eye(4), 5) for group in groups]) for groups in each]
    torch.testing.assert_close(matrix.running_wm, torch.stack(roots).mean(0))
    torch.testing.assert_close(covariance.running_cov, torch.stack(each).mean(0))


@torch.no_grad()
@pytest.mark.parametrize('tracked', TRACKED)
def test_recollected_matrices_are_those_of_all_elements(tracked):
    model = nn.Sequential(build(dict(type='BW', num_groups=2, tracked=tracked)).double())
    batches = [correlated(4, CHANNELS, 6, 5), correlated(2, CHANNELS, 7, 3)]
    recollect(model, batches)
    expected = covariances(*batches)
    if tracked == 'matrix':
        expected = torch.stack([newton(group + 1e-5 * torch.eye(4), 5) for group in expected])
    torch.testing.assert_close(model[0].running_matrix, expected)


def test_noise_on_variances_is_refused():
    said = 'BW whitens by a running matrix, to which noise on variances does nothing'
    with pytest.raises(ValueError, match=said), perturbed([build(dict(type='BW'))], 0.5):
        pass


def test_reset_starts_matrices_anew():
    layer = build(dict(type='BW'))
    layer(torch.randn(4, CHANNELS, 5, 5))
    layer.reset_running_stats()
    assert torch.equal(layer.running_wm[0], torch.eye(CHANNELS))


@torch.no_grad()
@pytest.mark.parametrize('picked', [0, 1])
def test_a_ratio_of_1_is_that_member_alone(picked):
    """BW, and GW of each group by itself."""
    layer, x = SW(CHANNELS, num_groups=2).double(), correlated(4, CHANNELS, 6, 5)
    layer.sw_mean_weight[picked] = layer.sw_var_weight[picked] = 1000
    if picked:
        expected = GW(4, num_groups=4).double()(x.reshape(8, 4, 6, 5)).view_as(x)
    else:
        expected = BW(CHANNELS, num_groups=2).double()(x)
    torch.testing.assert_close(layer(x), expected)


def test_a_bn_checkpoint_in_sw_is_said_to_compute_something_else():
    with pytest.warns(UserWarning, match='SW: a BN checkpoint is loaded; its ratios start equal, as in the paper, and'):
        build(dict(type='SW')).load_state_dict(nn.BatchNorm2d(CHANNELS).state_dict())


def test_tied_weights_compute_as_equal_ones_and_get_the_gradients_of_both():
    x = correlated(4, CHANNELS, 6, 5)
    tied, own = (randomized(SW(CHANNELS, members=5, tie_weight=tie).double()) for tie in (True, False))
    own.load_state_dict(tied.state_dict())
    outputs = [layer(x) for layer in (tied, own)]
    torch.testing.assert_close(*outputs)
    for y in outputs:
        y.pow(3).sum().backward()
    torch.testing.assert_close(tied.sw_mean_weight.grad, own.sw_mean_weight.grad + own.sw_var_weight.grad)
    assert all(torch.equal(ratios, tied.sw_mean_weight.softmax(0)) for ratios in tied.ratios())


def test_weights_that_a_file_has_and_tying_leaves_out_are_named():
    with pytest.raises(RuntimeError, match='Unexpected key.*"sw_var_weight"'):
        SW(CHANNELS, tie_weight=True).load_state_dict(SW(CHANNELS).state_dict())


@pytest.mark.parametrize('members', [1, 4])
def test_an_unknown_number_of_members_is_named(members):
    with pytest.raises(ValueError, match=rf'SW\(8\): members must be 2, 3 or 5, got {members}'):
        SW(CHANNELS, members=members)


@torch.no_grad()
@pytest.mark.parametrize('members', MEMBERS)
def test_what_the_authors_code_has_differently_is_other_ratios_another_scale_and_eps(members):
    """Their ratios of covariances do not sum to 1: LN's variance is unbiased, and of 5 members two have others' ratios.

    Divided by the sum s they do; a covariance of 1 / s whitens to sqrt(s) as much.
    """
    layer, x = randomized(SW(CHANNELS, num_groups=2, members=members).double()), correlated(3, CHANNELS, 5, 6)
    released = sw(layer, x, True, released=True)
    assert torch.allclose(layer(x), released, rtol=1e-6) == (members == 2)
    ratios = layer.ratios()[1]
    if members == 5:
        ratios[2:4] = ratios[:2]
    if members > 2:
        elements = x[0].numel()
        ratios[-1] *= elements / (elements - 1)
    layer.sw_var_weight.copy_(ratios.log())
    layer.eps /= ratios.sum().item()
    layer.weight /= ratios.sum().sqrt()
    torch.testing.assert_close(layer(x), released)
