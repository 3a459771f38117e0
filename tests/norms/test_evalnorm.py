import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmnorm.norms import EN, SyncEN, estimate_offline

from .cases import randomized


def network(norm):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        norm(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        norm(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('norm_eval', [False, True])
@pytest.mark.parametrize(
    'norm',
    [
        EN,
        lambda c: EN(c, mode='online'),
        lambda c: EN(c, momentum=None, mode='online'),
        lambda c: EN(c, momentum=None),
        SyncEN,
    ],
)
def test_training_is_bit_identical_to_bn(norm, norm_eval):
    momentum = norm(1).momentum
    models = [network(lambda c: nn.BatchNorm2d(c, momentum=momentum)), network(norm)]
    for model in models:
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        for _ in range(20):
            model.train()
            if norm_eval:
                for m in model.modules():
                    if isinstance(m, nn.modules.batchnorm._BatchNorm):
                        m.eval()
            x, y = torch.randn(4, 3, 12, 12) + 1, torch.randint(4, (4,))
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    expected, ours = (model.state_dict() for model in models)
    assert all(torch.equal(ours[key], value) for key, value in expected.items())


def test_evaluation_is_the_papers_equation_sample_by_sample():
    layer = randomized(EN(8, batch_size=3)).eval()
    x = torch.randn(4, 8, 5, 6) * 2 + 1
    a = b = 1 / 9
    m, v = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
    mu, var = (s.view(1, -1, 1, 1) for s in (layer.running_mean, layer.running_var))
    mean = a * m + (1 - a) * mu
    variance = b * v + (1 - b) * var + b * (1 - b) * (m - mu) ** 2
    weight, bias = (p.view(1, -1, 1, 1) for p in (layer.weight, layer.bias))
    expected = (x - mean) / (variance + layer.eps).sqrt() * weight + bias
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer(x[:1]), layer(x)[:1])


def bn_of(layer, x):
    return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)


def test_held_is_exactly_bn():
    layer = randomized(EN(8, batch_size=2)).train().eval()
    x = torch.randn(4, 8, 5, 5)
    assert torch.equal(layer(x), bn_of(layer, x))
    with torch.no_grad():
        assert not torch.allclose(layer(x), bn_of(layer, x), atol=1e-2)


def test_evaluation_with_gradients_is_that_without():
    """A forgotten no_grad, a saliency map, an adversarial example: what is differentiated is what is evaluated."""
    layer = randomized(EN(8, batch_size=2)).double()
    layer(torch.randn(2, 8, 5, 5, dtype=torch.float64))
    layer.eval()
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        expected = layer(x)
    torch.testing.assert_close(layer(x), expected)
    assert not torch.allclose(expected, bn_of(layer, x), atol=1e-2)
    assert torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize('said', [True, False])
def test_an_argument_says_outright_whether_it_is_held(said, recwarn):
    warnings.simplefilter('always')
    layer, x = randomized(EN(8, batch_size=2, held=said)), torch.randn(4, 8, 5, 5)
    for modes in ((False,), (True, False), (True, False, False)):
        for mode in modes:
            layer.train(mode)
        for _ in range(2):
            assert torch.equal(layer(x), bn_of(layer, x)) == said
    assert not [w for w in recwarn if 'evaluation mode' in str(w.message)]
    with pytest.raises(TypeError, match='held'):
        EN(8, held='yes')


@pytest.mark.parametrize('mode, power', [('rule', 2), ('simple', 1)])
def test_batch_size_is_what_training_saw_and_is_kept(mode, power):
    layer = EN(8, mode=mode)
    for _ in range(3):
        layer(torch.randn(4, 8, 5, 5))
    assert layer.mean_batch_size == 4 and layer.alpha == layer.beta == 4**-power
    layer(torch.randn(2, 8, 5, 5))
    assert layer.mean_batch_size == pytest.approx(3.8) and float(layer.alpha) == pytest.approx(3.8**-power)
    other = EN(8, mode='simple')
    other.load_state_dict(layer.state_dict(), strict=True)
    assert float(other.beta) == pytest.approx(1 / 3.8)
    given = EN(8, mode=mode, batch_size=2)
    given.load_state_dict(layer.state_dict(), strict=True)
    assert given.alpha == 2.0**-power
    assert EN(8, virtual_batch_size=2).mean_batch_size == 0


def test_averaged_copy_knows_the_batch_size_from_its_buffers():
    layer = EN(8)
    averaged = torch.optim.swa_utils.AveragedModel(layer, use_buffers=True)
    layer(torch.randn(4, 8, 5, 5))
    averaged.update_parameters(layer)
    assert averaged.module.knows_batch_size()
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(averaged.eval()(x), layer.eval()(x))


def test_without_a_batch_size_it_evaluates_as_bn_and_says_so(recwarn):
    warnings.simplefilter('always')
    bn, layer = randomized(nn.BatchNorm2d(8)).eval(), EN(8).eval()
    layer.load_state_dict(bn.state_dict(), strict=True)
    x = torch.randn(2, 8, 5, 5)
    with torch.no_grad():
        assert torch.equal(layer(x), bn(x)) and torch.equal(layer(x), bn(x))
    said = [str(w.message) for w in recwarn if 'evaluates as BN' in str(w.message)]
    assert len(said) == 1


def auxiliary_loss(x, alpha, beta, mu, var, eps=1e-5):
    """evalnorm, Eq. 7 to 9, on full batches, (batches, N, C, H, W)."""
    batch_var, batch_mean = torch.var_mean(x, (1, 3, 4), correction=0, keepdim=True)
    own_var, own_mean = torch.var_mean(x, (3, 4), correction=0, keepdim=True)
    mean = alpha * own_mean + (1 - alpha) * mu
    variance = beta * own_var + (1 - beta) * var + beta * (1 - beta) * (own_mean - mu) ** 2
    target = (x - batch_mean) / (batch_var + eps).sqrt()
    return (target - (x - mean) / (variance + eps).sqrt()).abs().mean()


def batches(number, size, spread_of_samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        level = torch.randn(size, 8, 1, 1, generator=generator) * spread_of_samples
        gain = torch.exp(torch.randn(size, 8, 1, 1, generator=generator) * spread_of_samples)
        yield torch.randn(size, 8, 12, 12, generator=generator) * gain + level


@pytest.mark.parametrize('how', ['online', 'offline'])
@pytest.mark.parametrize('size, spread_of_samples', [(2, 0.3), (2, 1.0), (4, 0.7), (16, 0.5)])
def test_estimation_finds_the_minimum_of_a_brute_force_grid(how, size, spread_of_samples):
    layer = EN(8, mode=how)
    for x in batches(2400 if how == 'online' else 100, size, spread_of_samples):
        layer(x)
    if how == 'offline':
        estimate_offline(layer, batches(600, size, spread_of_samples, seed=1))
    mu, var = (s.view(1, -1, 1, 1) for s in (layer.running_mean, layer.running_var))
    held_out = torch.stack(list(batches(60, size, spread_of_samples, seed=2)))

    def loss(alpha, beta):
        return float(auxiliary_loss(held_out, alpha, beta, mu, var))

    grid = {(a / 20, b / 20): loss(a / 20, b / 20) for a in range(21) for b in range(21)}
    best = min(grid, key=grid.get)
    found = loss(float(layer.alpha), float(layer.beta))
    assert found <= grid[best] + 0.03 * (grid[0, 0] - grid[best]), (best, layer.alpha, layer.beta)
    assert abs(float(layer.alpha) - best[0]) < 0.12 and abs(float(layer.beta) - best[1]) < 0.12


def test_online_starts_from_the_rule():
    layer = EN(8, mode='online')
    for _ in range(4):
        assert layer.alpha in (0, 1 / 16)
        layer(torch.randn(4, 8, 5, 5))
    # the rule's 1 / 16, moved by one AdaGrad step of 0.05
    assert float(layer.alpha) in (pytest.approx(1 / 16 + 0.05), pytest.approx(1 / 16 - 0.05))


def test_offline_estimation_changes_only_alpha_and_beta():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), EN(8, mode='offline'), nn.Dropout(), nn.Conv2d(8, 8, 3), EN(8, mode='offline')
    )
    model(torch.randn(4, 3, 12, 12))
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    found = estimate_offline(model, [torch.randn(4, 3, 12, 12) for _ in range(5)])
    assert list(found) == ['1', '4'] and found['1'] == (float(model[1].alpha), float(model[1].beta))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed <= {f'{i}.{name}' for i in (1, 4) for name in ('alpha', 'beta', 'squared_gradients')}
    assert '1.alpha' in changed
    assert [m.training for m in model.modules()] == modes and model[1].momentum == 0.1


def test_offline_estimation_teaches_a_batch_size_that_training_did_not():
    layer = EN(8, mode='offline')
    estimate_offline(layer, [torch.randn(4, 8, 5, 5) for _ in range(3)])
    assert layer.mean_batch_size == 4 and layer.alpha > 0
    torch.optim.swa_utils.update_bn([torch.randn(1, 8, 5, 5)], layer)
    assert layer.mean_batch_size == 4


@pytest.mark.parametrize('virtual_batch_size', [None, 2])
def test_reentrant_checkpointing_is_training(virtual_batch_size):
    """Its first pass has gradients disabled, as has one that recollects statistics."""
    layer, other = (EN(8, mode='online', virtual_batch_size=virtual_batch_size) for _ in range(2))
    x = torch.randn(4, 8, 5, 5, requires_grad=True)
    for _ in range(5):
        layer(x)
        torch.utils.checkpoint.checkpoint(other, x, use_reentrant=True)
    assert layer.mean_batch_size == (virtual_batch_size or 4) and layer.squared_gradients.any()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in layer.state_dict().items())


def test_adaptation_that_takes_the_running_statistics_away_teaches_nothing():
    layer = EN(8)
    layer(torch.randn(4, 8, 5, 5))
    layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    layer(torch.randn(1, 8, 5, 5)).sum().backward()
    assert layer.mean_batch_size == 4


def test_estimated_zero_is_kept_and_estimation_starts_afresh():
    layer = EN(8, mode='online', batch_size=4)
    layer.alpha.fill_(0)
    layer.beta.fill_(0.3)
    other = EN(8, mode='online', batch_size=4)
    other.load_state_dict(layer.state_dict())
    assert other.alpha == 0 and float(other.beta) == pytest.approx(0.3)
    layer = EN(8, mode='offline')
    layer(torch.randn(4, 8, 5, 5))
    layer.squared_gradients.fill_(1e6)
    estimate_offline(layer, [torch.randn(2, 8, 5, 5) for _ in range(3)])
    assert layer.mean_batch_size == 4 and layer.squared_gradients.max() < 1


def test_offline_estimation_says_what_is_missing():
    with pytest.raises(ValueError, match="no EN layer to estimate: set mode='offline'"):
        estimate_offline(nn.Sequential(EN(8)), [torch.randn(2, 8, 3, 3)])
    with pytest.raises(ValueError, match='there are no batches'):
        estimate_offline(EN(8, mode='offline'), [])


def test_virtual_batches_take_the_mean_of_their_statistics():
    layer, x = EN(8, virtual_batch_size=2, momentum=1.0), torch.randn(4, 8, 5, 5)
    layer(x)
    torch.testing.assert_close(layer.running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(layer.running_var, (x[:2].var((0, 2, 3)) + x[2:].var((0, 2, 3))) / 2)
    assert layer.mean_batch_size == 2


def test_both_readings_of_table_2c():
    x = torch.randn(4, 8, 5, 5)
    standard = randomized(EN(8, frozen=True)).train()
    expected = F.batch_norm(x, standard.running_mean, standard.running_var, standard.weight, standard.bias)
    assert torch.equal(standard(x), expected)
    own = randomized(EN(8, momentum=0)).requires_grad_(False).train()
    before = copy.deepcopy(own.running_mean), copy.deepcopy(own.running_var)
    expected = F.batch_norm(x, None, None, own.weight, own.bias, training=True)
    assert torch.equal(own(x), expected)
    assert torch.equal(own.running_mean, before[0]) and torch.equal(own.running_var, before[1])
