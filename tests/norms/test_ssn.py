"""SSN's ratios, how they become 0 and 1 in a training, and what is then made of the layer."""

import math

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch import nn

from mmnorm.blocks import fuse_conv_norm
from mmnorm.norms import SN, SSN, harden, set_sparsity
from mmnorm.norms.ssn import sparsestmax
from mmnorm.openmmlab.sparsity_hook import SparsestmaxHook

from .cases import CHANNELS, randomized
from .runners import runner as of_one_layer

SHAPE = (3, CHANNELS, 4, 5)


# the ratios


def points_of_the_simplex(steps):
    return (
        torch.tensor([(i, j, steps - i - j) for i in range(steps + 1) for j in range(steps + 1 - i)]).double() / steps
    )


@pytest.mark.parametrize('spread', [0.05, 0.3, 1.0])
def test_sparsestmax_is_the_nearest_point_that_is_far_enough_from_the_uniform_one(spread):
    """By all points of a grid: none is nearer.

    The authors' function (github.com/switchablenorms/Sparse_SwitchNorm, utils/ssn_utils.py) was run beside it once, on
    6000 weights and radii: the same, gradients too, to the float32 that it has inside, wherever the nearest point of
    the simplex is within it. Where that is on an edge, theirs takes the radius from the middle of the edge, and goes
    further, by up to 0.28.
    """
    grid = points_of_the_simplex(200)
    for fraction in torch.rand(20, dtype=torch.double):
        weight, radius = torch.randn(3, dtype=torch.double) * spread + 1, fraction * math.sqrt(2 / 3)
        found = sparsestmax(weight, fraction)
        assert found.min() >= 0 and found.sum() == pytest.approx(1) and (found - 1 / 3).norm() >= radius - 1e-9
        allowed = grid[(grid - 1 / 3).norm(dim=1) >= radius]
        assert (found - weight).norm() <= (allowed - weight).norm(dim=1).min() + 1e-9


@pytest.mark.parametrize('members', [2, 3])
def test_gradients_of_sparsestmax(members):
    for seed in range(20):
        torch.manual_seed(seed)
        weight = (torch.randn(2, members, dtype=torch.double) * 0.3).requires_grad_()
        fraction = torch.rand((), dtype=torch.double)
        assert torch.autograd.gradcheck(lambda weight, r=fraction: sparsestmax(weight, r), weight)


@pytest.mark.parametrize('fraction', [0.0, 0.4, 1.0])
def test_equal_weights_stay_equal_and_train(fraction):
    weight = torch.full((2, 3), 0.1, requires_grad=True)
    ratios = sparsestmax(weight, fraction)
    torch.testing.assert_close(ratios, torch.full((2, 3), 1 / 3))
    (gradient,) = torch.autograd.grad((ratios * torch.tensor([1.0, 2.0, 6.0])).sum(), weight)
    torch.testing.assert_close(gradient, torch.tensor([-2.0, -1.0, 3.0]).expand(2, 3))


def test_the_largest_radius_leaves_one():
    weight = torch.randn(50, 3)
    torch.testing.assert_close(sparsestmax(weight, 1.0), nn.functional.one_hot(weight.argmax(1), 3).float())


# the layer


def picked(mean, var, **arguments):
    """An SSN layer whose weights say what it will pick, IN, LN or BN (0, 1 or 2)."""
    layer = randomized(SSN(CHANNELS, **arguments))
    with torch.no_grad():
        for weight, pick in ((layer.mean_weight, mean), (layer.var_weight, var)):
            weight.copy_(torch.tensor([1.0, 0.9, 0.8]).roll(pick))
    return layer


@pytest.mark.parametrize('mean, var', [(0, 0), (2, 2), (1, 2), (2, 0)])
def test_it_ends_as_what_it_picked(mean, var):
    """As SN with these ratios, in training and in evaluation, with gradients and without; and as harden makes it."""
    layer, x = picked(mean, var), torch.randn(SHAPE)
    with pytest.raises(ValueError, match='SSN: the sparsity must be from 0 to 1, got 1.5'):
        layer.set_sparsity(1.5)
    soft = layer.eval()(x)
    assert set_sparsity(nn.Sequential(layer), 1.0) == 1
    sn = SN(CHANNELS, hard=True)
    sn.load_state_dict({name: value for name, value in layer.state_dict().items() if name != 'radius'}, strict=False)
    expected = sn.eval()(x)
    assert not torch.allclose(soft, expected, atol=1e-2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        assert layer.is_bn_in_evaluation == (mean == var == 2)
        assert layer.used_scopes() == sorted({mean, var})
    torch.testing.assert_close(layer.train()(x), sn.train()(x), rtol=1e-4, atol=1e-5)
    assert harden(layer)[''] == tuple([('IN', 'LN', 'BN')[pick]] for pick in (mean, var))
    torch.testing.assert_close(layer.eval()(x), sn.eval()(x), rtol=1e-4, atol=1e-5)


def test_every_weight_has_a_gradient_in_training_at_the_end_too():
    """As DistributedDataParallel wants it; it is 0 then."""
    layer = picked(2, 2)
    set_sparsity(layer, 1.0)
    for training in (True, False):
        layer.zero_grad()
        layer.train(training)(torch.randn(SHAPE)).square().sum().backward()
        assert all(p.grad is not None for p in layer.parameters())
        assert layer.mean_weight.grad.abs().max() < 1e-3 and layer.weight.grad.abs().max() > 1e-3


@torch.no_grad()
def test_where_it_picked_bn_it_folds_after_loading_as_well():
    model = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), picked(2, 2)).eval()
    fuse = fuse_conv_norm(nn.Sequential(nn.Conv2d(3, CHANNELS, 3), picked(2, 2)).eval())
    assert not fuse.folded
    set_sparsity(model, 1.0)
    loaded = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), SSN(CHANNELS)).eval()
    loaded.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 6, 7)
    expected = loaded(x)
    torch.testing.assert_close(expected, model(x))
    assert fuse_conv_norm(loaded).folded == {'1': '0'} and isinstance(loaded[1], nn.Identity)
    torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_weights_of_sn_and_of_the_authors_load():
    sn, layer, x = randomized(SN(CHANNELS)).eval(), SSN(CHANNELS).eval(), torch.randn(SHAPE)
    layer.load_state_dict(sn.state_dict())
    torch.testing.assert_close(layer(x), sn(x))
    theirs = {name: value.reshape(1, -1, 1, 1) if value.dim() else value for name, value in sn.state_dict().items()}
    one_hot = torch.tensor([0.0, 1.0, 0.0])
    theirs |= dict(mean_weight=one_hot, var_weight=one_hot, radius=torch.ones(1) * 0.9)
    theirs |= dict(mean_fixed=torch.ones(1), var_fixed=torch.ones(1))
    layer.load_state_dict(theirs, strict=True)
    torch.testing.assert_close(layer(x), nn.functional.group_norm(x, 1, sn.weight, sn.bias), rtol=1e-4, atol=1e-5)
    assert layer.used_scopes() == [1]


@torch.no_grad()
def test_a_share_of_bn_is_that_of_the_ratios():
    bn, layer = randomized(nn.BatchNorm2d(CHANNELS)).eval(), SSN(CHANNELS, bn_share=0.9).eval()
    layer.load_state_dict(bn.state_dict())
    for ratios in layer.ratios():
        torch.testing.assert_close(ratios, torch.tensor([0.05, 0.05, 0.9]))


# a training


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, CHANNELS, 1), SSN(CHANNELS)
        self.frozen = SSN(CHANNELS, frozen=True)
        self.radii = []

    def forward(self, inputs, mode='tensor'):
        self.radii.append(float(self.norm.radius) / math.sqrt(2 / 3))
        return dict(loss=self.frozen(self.norm(self.conv(inputs))).sin().mean())


def runner(folder, iterations=8, **arguments):
    return of_one_layer(folder, Model(), iterations, **arguments)


def radii(run):
    run.train()
    return run.model.radii


def test_the_radius_grows_with_the_steps_and_ends_with_the_training(tmp_path):
    run = runner(tmp_path)
    assert radii(run) == pytest.approx([step / 8 for step in range(8)])
    saved = [torch.load(tmp_path / f'iter_{i}.pth', weights_only=False)['state_dict']['norm.radius'] for i in (4, 8)]
    assert [float(radius) for radius in saved] == pytest.approx([math.sqrt(2 / 3) / 2, math.sqrt(2 / 3)])
    assert run.model.norm.picks and not run.model.frozen.picks
    assert sum(isinstance(hook, SparsestmaxHook) for hook in run.hooks) == 1


def test_a_resumed_training_goes_on_where_it_was(tmp_path):
    first = runner(tmp_path, 8)
    whole = radii(first)
    resumed = runner(tmp_path, 8, load_from=str(tmp_path / 'iter_3.pth'), resume=True)
    assert radii(resumed) == pytest.approx(whole[3:])


def test_iterations_that_accumulate_do_not_count(tmp_path):
    run = runner(tmp_path, optim_wrapper=dict(accumulative_counts=3))
    assert radii(run) == pytest.approx([step / 3 for step in (0, 0, 0, 1, 1, 1, 2, 2)])
    assert run.model.norm.picks


def test_steps_that_are_left_out_do_not_count_but_the_training_ends_hard(tmp_path, monkeypatch):
    run, step = runner(tmp_path), OptimWrapper.step

    def some_steps(self, **kwargs):  # as a scaler of mixed precision has it, where gradients are not finite
        if len(run.model.radii) not in (2, 3):
            step(self, **kwargs)

    monkeypatch.setattr(OptimWrapper, 'step', some_steps)
    assert radii(run) == pytest.approx([taken / 8 for taken in (0, 1, 1, 1, 2, 3, 4, 5)])
    assert run.model.norm.picks


def test_an_end_before_that_of_the_training(tmp_path):
    run = runner(tmp_path, hooks=[dict(type='SparsestmaxHook', end=0.5)])
    assert radii(run) == pytest.approx([min(1, step / 4) for step in range(8)])
    for end in (0, 1.1):
        with pytest.raises(ValueError, match='SparsestmaxHook: end must be above 0 and at most 1'):
            SparsestmaxHook(end)
