"""MABN in trainings whose steps are counted; over the registry it normalizes each batch by itself."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmnorm.blocks import ConvMABN
from mmnorm.norms import MABN, count_steps, mabn

from .cases import CHANNELS, randomized

BATCHES = [torch.randn(2, CHANNELS, 4, 5, generator=torch.manual_seed(i)).double() * (1 + i % 3) for i in range(12)]


@pytest.fixture
def early(monkeypatch):
    """r counts from the fifth step on."""
    monkeypatch.setattr(mabn, '_WARMUP_OF_R', 5)


def layer_and_optimizer(window=3, warmup=4, norm=None):
    layer = randomized(norm or MABN(CHANNELS, window=window, warmup=warmup)).double()
    layer.running_mean.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-2)
    count_steps(layer, optimizer)
    return layer, optimizer


def mean(x):
    return x.mean((0, 2, 3), keepdim=True)


def test_equals_the_papers_equations_forward_and_backward_over_steps(early):
    """The authors' code (github.com/megvii-model/MABN, MABN.py) was run beside MABN behind ConvMABN once, over 1030
    steps of SGD from the same tensors, batches of (2, 3, 8, 7), its buffer_size 4 and warmup_iters 10 being window 4
    and warmup 9 here: results, gradients and running variance differ by at most 2e-15 of the largest in float64, and by
    2e-6 in float32.
    """
    layer, optimizer = layer_and_optimizer()
    eps, running, squares, products = layer.eps, layer.running_var.clone().view(1, -1, 1, 1), [], []
    clipped = 0
    for step, batch in enumerate(BATCHES):
        weight, bias = (p.detach().clone().view(1, -1, 1, 1) for p in (layer.weight, layer.bias))
        x, grad = batch.clone().requires_grad_(), torch.randn_like(batch)
        y = layer(x)
        y.backward(grad)

        squares.append(mean(batch.square()))
        full = step >= 4
        square = torch.stack(squares[-3:]).mean(0) if full else squares[-1]
        r = ((square + eps) / (running + eps)).sqrt() if step >= 5 else torch.ones_like(running)
        clipped += int(((r < 1 / 5) | (r > 5)).sum())
        r = r.clamp(1 / 5, 5)
        z = batch / (square + eps).sqrt()
        g = grad * weight * r
        products.append(mean(g * z))
        product = torch.stack(products[-3:]).mean(0) if full else products[-1]
        running = running + layer.momentum * (square - running)
        torch.testing.assert_close(y, weight * r * z + bias)
        torch.testing.assert_close(x.grad, (g - z * product) / (square + eps).sqrt())
        torch.testing.assert_close(layer.weight.grad, (grad * r * z).sum((0, 2, 3)))
        torch.testing.assert_close(layer.bias.grad, grad.sum((0, 2, 3)))
        torch.testing.assert_close(layer.running_var.view_as(running), running)
        assert not layer.running_mean.any()
        optimizer.step()
        optimizer.zero_grad()
        if step == 6:
            running[:, 0] = layer.running_var[0] = 1e3  # beyond what r may be
    assert clipped


@pytest.mark.parametrize('reentrant', [True, False])
def test_activation_checkpointing_changes_nothing(early, reentrant):
    layer, optimizer = layer_and_optimizer()
    saving = copy.deepcopy(layer)
    by = torch.optim.SGD(saving.parameters(), lr=1e-2)
    count_steps(saving, by)
    for step in range(9):
        # two micro-batches a step, of which the last is kept
        for batch in BATCHES[step : step + 2]:
            inputs = [batch.clone().requires_grad_() for _ in range(2)]
            results = layer(inputs[0]), checkpoint(saving, inputs[1], use_reentrant=reentrant)
            torch.testing.assert_close(*results)
            for y in results:
                y.sin().sum().backward()
            torch.testing.assert_close(*(x.grad for x in inputs))
        for optim in (optimizer, by):
            optim.step()
            optim.zero_grad()
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(saving.state_dict()[name], value, msg=name)


def test_calls_of_levels_are_not_mixed_and_that_is_said():
    layer, optimizer = layer_and_optimizer(warmup=0)
    alone = MABN(CHANNELS).double()
    with pytest.warns(UserWarning, match='MABN is called again before the backward pass of its last call'):
        for first, second in zip(BATCHES, BATCHES[1:]):
            alone.load_state_dict(layer.state_dict())
            found = [layer(x) for x in (first, second)]
            torch.testing.assert_close(found, [alone(x) for x in (first, second)])
            sum(found).cos().sum().backward()
            optimizer.step()


def test_a_gradient_of_the_gradient_is_refused():
    layer, _ = layer_and_optimizer()
    x = BATCHES[0].clone().requires_grad_()
    with pytest.raises(RuntimeError, match='^the backward pass of MABN in training is not the derivative'):
        torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)


def test_statistics_that_are_recollected_are_mean_squares():
    layer = MABN(CHANNELS).double()
    batches = [x + 3 for x in BATCHES[:4]]
    torch.optim.swa_utils.update_bn(batches, layer)
    torch.testing.assert_close(layer.running_var, torch.stack([mean(x.square()).flatten() for x in batches]).mean(0))
    assert not layer.running_mean.any()
    tracked_mean, tracked_var, _ = layer.tracked_moments(batches[0])
    torch.testing.assert_close(tracked_var, mean(batches[0].square()).flatten())
    assert not tracked_mean.any()


def test_a_bn_checkpoint_loads_with_a_warning_and_its_mean_goes_into_the_mean_square():
    bn = randomized(nn.BatchNorm2d(CHANNELS))
    layer = MABN(CHANNELS)
    with pytest.warns(UserWarning, match='^MABN: a BN checkpoint is loaded, and no mean is taken off here'):
        layer.load_state_dict(bn.state_dict())
    torch.testing.assert_close(layer.running_var, bn.running_var + bn.running_mean.square())
    other = MABN(CHANNELS)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other.running_var, layer.running_var)


# ConvMABN


def test_centered_weights_are_those_of_a_convolution_whose_weights_have_no_mean():
    layer, plain = ConvMABN(4, CHANNELS, 3, padding=1, groups=2), nn.Conv2d(4, CHANNELS, 3, padding=1, groups=2)
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        for one in plain.weight:
            one -= one.mean()
    x = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(layer(x + 2)[..., 1:-1, 1:-1], layer(x)[..., 1:-1, 1:-1])  # a constant falls out


def test_two_keys_of_a_config_suffice():
    cfg = dict(type='ResNet', depth=18, base_channels=8, norm_eval=False)
    model = MODELS.build(cfg | dict(norm_cfg=dict(type='MABN', window=2, warmup=0), conv_cfg=dict(type='ConvMABN')))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    count_steps(model, optimizer)
    for _ in range(3):
        sum(level.square().mean() for level in model(torch.randn(2, 3, 64, 64))).backward()
        optimizer.step()
    norms = [layer for layer in model.modules() if isinstance(layer, MABN)]
    assert len(norms) == sum(isinstance(layer, ConvMABN) for layer in model.modules()) == 20
    assert all(norm.steps == 3 and norm.history.begin(norm.steps)[0].product is not None for norm in norms)
    model.eval()
    assert model(torch.randn(1, 3, 64, 64))[0].isfinite().all()
