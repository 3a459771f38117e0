"""The estimation shift against all activations kept and computed at once (xbn, Definitions 1 and 2)."""

import pytest
import torch
from torch import nn

from mmnorm.statistics import INPUT, Moments, bn_layers, collect_moments, measure_shift
from tests.norms.cases import EVERY, build, described, randomized

BN_LIKE = [cfg for cfg in EVERY if isinstance(layer := build(cfg), nn.BatchNorm2d) and layer.running_mean is not None]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Head(nn.Module):
    """A network as detectors are: maps of several sizes share a head, and what RoIs there are go through another."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU())
        self.shared = nn.Sequential(nn.Conv2d(8, 8, 1), norm(8))
        self.roi = nn.BatchNorm1d(8)

    def forward(self, x):
        x = self.stem(x)
        levels = [self.shared(level) for level in (x, x[..., ::2, ::2])]
        rois = levels[0].mean((2, 3))
        return self.roi(rois[rois[:, 0] > rois[:, 0].median() - int(len(rois) > 2)])


def trained(model):
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            randomized(layer)
    return model


def batches(sizes=((3, 6, 5), (1, 8, 8), (2, 4, 9)), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, h, w, generator=generator) * 3 + 1 for n, h, w in sizes]


def kept(model, data):
    """Everything that each BN gets, as (elements, channels) in float64."""
    seen = {name: [] for name in bn_layers(model)}
    handles = [
        layer.register_forward_pre_hook(
            lambda m, args, name=name: seen[name].append(args[0].detach().double().transpose(0, 1).flatten(1).T)
        )
        for name, layer in bn_layers(model).items()
    ]
    model.eval()
    with torch.no_grad():
        for batch in data:
            model(batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def test_equals_all_activations_at_once():
    model = trained(Head()).double()
    data = [batch.double() for batch in batches()]
    shifts = measure_shift(model, data)
    for name, activations in kept(model, data).items():
        layer, shift = model.get_submodule(name), shifts[name]
        mean, var = activations.mean(0), activations.var(0, correction=0)
        torch.testing.assert_close(shift.mean, mean)
        torch.testing.assert_close(shift.var, var)
        assert shift.count == len(activations)
        assert shift.esm_mu == pytest.approx(float((layer.running_mean - mean).norm()))
        assert shift.esm_sigma == pytest.approx(float((layer.running_var.sqrt() - var.sqrt()).norm()))
        # relative to its scale: mean and deviation of what comes out before the affine, without eps
        scale = (layer.running_var + layer.eps).sqrt()
        normalized = (activations - layer.running_mean) / scale
        torch.testing.assert_close(shift.channel_mu, normalized.mean(0))
        expected = normalized.std(0, correction=0) - layer.running_var.sqrt() / scale
        torch.testing.assert_close(shift.channel_sigma, expected)
        assert shift.relative_mu == pytest.approx(float(normalized.mean(0).square().mean().sqrt()))


def test_each_call_of_a_shared_layer_is_measured_by_itself():
    model = trained(Head()).double()
    data = [batch.double() for batch in batches()]
    shifts = measure_shift(model, data)
    assert not shifts['stem.1'].calls and not shifts['roi'].calls
    parts = {name: [] for name in ('first', 'second')}
    handle = model.shared[1].register_forward_pre_hook(
        lambda layer, args: parts['second' if len(parts['second']) < len(parts['first']) else 'first'].append(args[0])
    )
    with torch.no_grad():
        for batch in data:
            model.eval()(batch)
    handle.remove()
    layer = model.shared[1]
    for shift, of_call in zip(shifts['shared.1'].calls, parts.values(), strict=True):
        activations = torch.cat([x.transpose(0, 1).flatten(1).T for x in of_call])
        mean = activations.mean(0)
        torch.testing.assert_close(shift.mean, mean)
        torch.testing.assert_close(shift.var, activations.var(0, correction=0))
        assert shift.esm_mu == pytest.approx(float((layer.running_mean - mean).norm()))


class Counted(nn.Module):
    """A network whose layer is called as often as its input says."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(3)

    def forward(self, inputs):
        return [self.bn(x) for x in inputs]


def test_calls_whose_number_varies_have_no_place():
    x = torch.randn(4, 3)
    for numbers, expected in (([2, 2], 2), ([2, 0, 2], 2), ([3, 2], 0), ([2, 3, 2], 0), ([1, 1], 0)):
        (shift,) = measure_shift(Counted(), [[x] * number for number in numbers]).values()
        assert len(shift.calls) == expected and shift.count == 4 * sum(numbers)
    # an empty input is a call; one that is always empty leaves nothing to compare
    for empty, expected in (([[x[:0], x], [x, x]], 2), ([[x[:0], x]] * 2, 0)):
        (shift,) = measure_shift(Counted(), empty).values()
        assert len(shift.calls) == expected
    # without a forward of the network there is no pass to count in
    (shift,) = measure_shift(Counted(), [[x] * 2], lambda model, inputs: model.forward(inputs)).values()
    assert not shift.calls and shift.count == 8


def test_float32_is_as_exact_as_its_moments():
    model, data = trained(Head()), batches()
    shifts = measure_shift(model, data)
    for name, activations in kept(model, data).items():
        torch.testing.assert_close(shifts[name].mean, activations.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(shifts[name].var, activations.var(0, correction=0), rtol=1e-5, atol=1e-6)


def test_a_large_mean_does_not_drown_the_variance():
    seen, data = Moments(), torch.randn(50, 40, dtype=torch.float64) * 1e-3 + 1e4
    for part in data.split(7):
        seen.add(part.mean(0), part.var(0, correction=0), len(part))
    torch.testing.assert_close(seen.var, data.var(0, correction=0), rtol=1e-8, atol=0)
    torch.testing.assert_close(seen.unbiased_var, data.var(0), rtol=1e-8, atol=0)


def test_parts_merged_equal_the_whole():
    data = torch.randn(30, 4, dtype=torch.float64)
    whole, parts = Moments(), [Moments(), Moments(), Moments()]
    for i, part in enumerate(data.split([3, 9, 1, 17])):
        for seen in (whole, parts[i % 2]):
            seen.add(part.mean(0), part.var(0, correction=0), len(part))
    total = Moments()
    for part in parts:  # the last one got nothing
        total.merge(part)
    for field in ('count', 'mean', 'squares', 'batch_mean', 'batch_squares', 'batch_unbiased_var'):
        torch.testing.assert_close(getattr(total, field), getattr(whole, field))
    assert total.batches == whole.batches == 4


@pytest.mark.parametrize('cfg', BN_LIKE, ids=described)
def test_tracked_moments_are_what_training_tracks(cfg):
    """The expected statistics are defined like the running ones, whatever the norm."""
    layer = randomized(build(cfg)).double()
    x = torch.randn(4, 8, 6, 5, dtype=torch.float64) * 2 + 1
    mean, var, count = layer.tracked_moments(x)
    if var.dim() == 3:  # a covariance
        var = var.diagonal(dim1=1, dim2=2).flatten()
    used = layer.used_statistics
    if not layer.running_mean[used].numel() or layer.frozen:
        return
    before = layer.running_mean.clone()
    layer.momentum = 1.0
    layer.train()(x)
    count = torch.as_tensor(count, dtype=torch.float64)
    if getattr(layer, 'virtual_batch_size', None) or getattr(layer, 'batch_groups', 1) == 2:
        # the running variance is the mean over the two parts of the batch, ours pools them: more by what lies between
        torch.testing.assert_close(mean[used], layer.running_mean[used])
        part = count / 2
        assert (var[used] > layer.running_var[used] * (part - 1) / part).all()
        return
    torch.testing.assert_close(mean[used], layer.running_mean[used])
    if cfg.get('estimate'):  # around the running mean of before
        torch.testing.assert_close(var + (mean - before).square(), layer.running_var)
        return
    corrected = var * count / (count - 1) if layer.bessel else var
    torch.testing.assert_close(corrected[used], layer.running_var[used])


def test_covariances_of_parts_are_those_of_the_whole():
    data, whole, other = torch.randn(30, 6, dtype=torch.float64) + 5, Moments(), Moments()
    data[:, 1] += data[:, 0]

    def covariance(rows):
        return torch.stack([torch.cov(group.T, correction=0) for group in rows.split(3, 1)])

    for i, part in enumerate(data.split([3, 9, 1, 17])):
        (whole, other)[i % 2].add(part.mean(0), covariance(part), len(part))
    whole.merge(other)
    torch.testing.assert_close(whole.covariance, covariance(data))
    torch.testing.assert_close(whole.var, data.var(0, correction=0))
    torch.testing.assert_close(whole.unbiased_var, data.var(0))


def test_nothing_stays_behind():
    model = trained(Head()).train()
    model.roi.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_shift(model, batches())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and not model.roi.training
    assert not any(m._forward_pre_hooks for m in model.modules())
    with pytest.raises(ZeroDivisionError), collect_moments(model):
        raise ZeroDivisionError
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_input_is_layer_0():
    model, data = trained(Head()), batches()
    assert INPUT not in measure_shift(model, data)
    shift = measure_shift(model, data, input_statistics=(torch.zeros(3), torch.ones(3)))[INPUT]
    elements = torch.cat([x.transpose(0, 1).flatten(1) for x in data], 1).double()
    assert shift.esm_mu == pytest.approx(float(elements.mean(1).norm()), rel=1e-5)
    assert shift.esm_sigma == pytest.approx(float((elements.std(1, correction=0) - 1).norm()), rel=1e-5)


def test_layers_that_never_run_are_left_out():
    model = trained(Head())
    assert 'roi' not in measure_shift(model, batches(), forward=lambda model, batch: model.stem(batch))


def test_a_user_is_told_what_is_wrong():
    with pytest.raises(ValueError, match='Sequential has no layer with running statistics'):
        measure_shift(nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3)), batches())
    with pytest.raises(ValueError, match='there are no batches to measure the estimation shift on'):
        measure_shift(Head(), [])
    data = batches()
    data[1][0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match='the input of the network has values that are not finite'):
        measure_shift(Head(), data)
    broken = Head()
    broken.shared[0].weight.data[0] = torch.inf
    with pytest.raises(ValueError, match='the input of shared.1 has values that are not finite'):
        measure_shift(broken, batches())
    diverged = Head()
    diverged.stem[1].running_var.fill_(torch.nan)
    with pytest.raises(ValueError, match='the running statistics of stem.1 are not finite'):
        measure_shift(diverged, batches())
