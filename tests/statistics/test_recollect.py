"""Recollected statistics against those of all activations (sn, batch average), and what must stay as it was."""

import copy

import pytest
import torch
from torch import nn

from mmnorm.norms import BCN, EN, FrozenBN
from mmnorm.statistics import bn_layers, recollect
from tests.norms.cases import described

from .test_shift import BN_LIKE, Head, batches, build, randomized, seeded, trained  # noqa: F401

LEARNING = [
    cfg for cfg in BN_LIKE if cfg['type'] != 'FrozenBN' and build(cfg).running_mean[build(cfg).used_statistics].numel()
]


def by_batch(model, data):
    """What each BN gets when every BN normalizes by batch statistics: a list of (elements, channels) by layer."""
    seen = {name: [] for name in bn_layers(model)}
    for name, layer in bn_layers(model).items():
        layer.register_forward_pre_hook(
            lambda m, args, name=name: seen[name].append(args[0].detach().double().transpose(0, 1).flatten(1).T)
        )
    model.train()
    with torch.no_grad():
        for batch in data:
            model(batch)
    return seen


class Small(nn.Module):
    """Two norms behind each other: the second one depends on how the first one normalizes."""

    def __init__(self, cfg):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 1), build(cfg), nn.ReLU(), nn.Dropout(0.9), build(cfg))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize('pooled', [True, False])
def test_equals_all_activations_at_once(pooled):
    data, model, twin = batches(((3, 6, 5), (1, 8, 8), (4, 4, 9))), trained(Head(Plain)), Head(Plain)
    twin.load_state_dict(model.state_dict())
    expected = by_batch(twin, data)
    found = recollect(model, data, pooled=pooled)
    assert found.keys() == expected.keys()
    assert not all(map(len, expected['roi'])) and sum(map(len, expected['roi'])) > 3  # one batch without RoIs
    for name, parts in expected.items():
        parts = [part for part in parts if len(part)]
        layer = model.get_submodule(name)
        if pooled:
            mean, var = torch.cat(parts).mean(0), torch.cat(parts).var(0)
        else:
            mean, var = (
                torch.stack([f(part) for part in parts]).mean(0)
                for f in (lambda part: part.mean(0), lambda part: part.var(0))
            )
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.running_var.double(), var, rtol=1e-4, atol=1e-5)
        assert found[name].batches == len(parts)


class Plain(nn.BatchNorm2d):
    """BN of any subclass, as projects have their own."""


OF_SEVERAL_SIZES = [torch.randn(n, 8, 3, 4, generator=torch.manual_seed(n)).double() * n + 1 / n for n in (3, 2, 4)]


def assert_same_statistics(layer, collect, other, but=''):
    """Two ways to collect the statistics of a layer, but for one of them, come to the same."""
    found = []
    for collects in (collect, other):
        model = nn.Sequential(copy.deepcopy(layer)).double()
        collects(model)
        named = model[0].named_buffers()
        found.append({name: value for name, value in named if name.startswith('running_') and name != but})
    torch.testing.assert_close(*found)


@pytest.mark.parametrize('cfg', LEARNING, ids=described)
def test_several_batches_give_what_one_batch_of_all_their_elements_does(cfg):
    assert_same_statistics(
        randomized(build(cfg)),
        lambda model: recollect(model, OF_SEVERAL_SIZES),
        lambda model: recollect(model, [torch.cat(OF_SEVERAL_SIZES)]),
    )


@pytest.mark.parametrize('cfg', LEARNING, ids=described)
def test_averages_over_batches_are_those_of_update_bn(cfg):
    if tracks_otherwise(cfg):
        pytest.skip(tracks_otherwise(cfg))
    assert_same_statistics(
        randomized(build(cfg)),
        lambda model: recollect(model, OF_SEVERAL_SIZES, pooled=False),
        lambda model: torch.optim.swa_utils.update_bn(OF_SEVERAL_SIZES, model),
        but='running_wm',  # of the average of the covariances, not the average of theirs
    )


def tracks_otherwise(cfg):
    """Why training does not track the statistics of a batch; '' if it does."""
    if cfg.get('virtual_batch_size') or cfg.get('batch_groups') == 2:
        return 'tracks the mean variance of parts of a batch; what is recollected is that of all elements'
    if cfg.get('estimate'):
        return 'tracks the variance around the running mean of before; what is recollected is around that of now'
    return ''


def test_estimates_of_bcn_are_those_that_training_comes_to():
    x = OF_SEVERAL_SIZES[0]
    assert_same_statistics(
        BCN(8, estimate=True, momentum=1.0),
        lambda model: recollect(model, [x]),
        lambda model: [model(x) for _ in range(2)],  # the second time around the mean of the first
    )


@pytest.mark.parametrize('cfg', LEARNING, ids=described)
def test_one_batch_gives_what_training_would_track(cfg):
    if tracks_otherwise(cfg):
        pytest.skip(tracks_otherwise(cfg))
    model = trained(Small(cfg)).double()
    x = torch.randn(4, 3, 6, 5, dtype=torch.float64)
    twin = trained(Small(cfg)).double()
    twin.load_state_dict(model.state_dict())
    twin.train()
    for layer in bn_layers(twin).values():
        layer.momentum = 1.0
    twin.layers[3].eval()  # dropout: everything but the norms evaluates
    with torch.no_grad():
        twin(x)
    recollect(model, [x])
    for name, layer in bn_layers(model).items():
        expected, used = twin.get_submodule(name), layer.used_statistics
        torch.testing.assert_close(layer.running_mean[used], expected.running_mean[used])
        torch.testing.assert_close(layer.running_var[used], expected.running_var[used])
        for matrix in ('running_wm', 'running_cov'):
            assert getattr(layer, matrix, None) is getattr(expected, matrix, None) or torch.allclose(
                getattr(layer, matrix), getattr(expected, matrix)
            )


@pytest.mark.parametrize('cfg', LEARNING, ids=described)
def test_only_running_statistics_change(cfg):
    model = trained(Small(cfg)).train()
    model.layers[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = [{k: v for k, v in vars(m).items() if not isinstance(v, dict)} for m in model.modules()]
    recollect(model, batches(((3, 6, 5), (2, 8, 8))))
    changed = {
        name.rpartition('.')[2] for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed - {'running_wm', 'running_cov'} == {'running_mean', 'running_var'}
    matrices = {name.rpartition('.')[2] for name in model.state_dict()} & {'running_wm', 'running_cov'}
    assert matrices <= changed
    assert attributes == [{k: v for k, v in vars(m).items() if not isinstance(v, dict)} for m in model.modules()]


def test_named_and_frozen_layers():
    model = nn.Sequential(nn.BatchNorm2d(3), FrozenBN(3), EN(3, frozen=True), nn.BatchNorm2d(3))
    assert list(recollect(model, batches())) == ['0', '3']
    assert list(recollect(model, batches(), names=['3'])) == ['3']
    with pytest.raises(ValueError, match='no layer with running statistics named 7'):
        recollect(model, batches(), names=['7'])
    with pytest.raises(ValueError, match='is frozen'):
        recollect(model, batches(), names=['1'])


def test_failure_leaves_everything_as_it_was():
    model, data = trained(Head()), batches(((3, 6, 5), (4, 8, 8)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data[1][0] = torch.nan
    with pytest.raises(ValueError, match='not finite'):
        recollect(model, data)
    with pytest.raises(ValueError, match='there are no batches to recollect statistics from'):
        recollect(model, [])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_empty_batch_is_no_batch():
    """torch's BN would turn its running statistics into NaN."""
    model = nn.Sequential(nn.BatchNorm2d(3))
    data = batches(((3, 6, 5), (0, 6, 5), (2, 8, 8)))
    assert recollect(model, data)['0'].batches == 2
    elements = torch.cat([x.transpose(0, 1).flatten(1) for x in data], 1)
    torch.testing.assert_close(model[0].running_var, elements.var(1))
