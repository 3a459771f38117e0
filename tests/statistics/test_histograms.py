"""Normalized activations of single channels (evalnorm, Figure 1)."""

import torch
from torch import nn

from mmnorm.norms import BCN
from mmnorm.statistics import EDGES, collect_histograms, measure_shift, normalizing_by_batch, worst_channel

from ..norms.cases import randomized
from .test_shift import batches, seeded, trained  # noqa: F401


def test_counts_are_those_of_the_normalized_channel():
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))).eval()
    data = batches()
    with torch.no_grad(), collect_histograms(model, {'1': 5}) as counts:
        for batch in data:
            model(batch)
    layer = model[1]
    x = torch.cat([model[0](batch).detach()[:, 5].flatten() for batch in data])
    normalized = (x - layer.running_mean[5]) / (layer.running_var[5] + layer.eps).sqrt()
    expected = torch.histogram(normalized, EDGES)[0]
    assert (counts['1'] - expected).abs().sum() <= 4  # rounding at the bounds of bins
    assert not layer._forward_hooks


@torch.no_grad()
def test_affine_of_groups_is_taken_off_each_channel():
    model, data = nn.Sequential(randomized(BCN(8, num_groups=2))).eval(), torch.randn(4, 8, 6, 5)
    layer = model[0]
    with collect_histograms(model, {'0': 5}) as counts:
        model(data)
    layer.weight.fill_(1)
    layer.bias.zero_()
    assert (counts['0'] - torch.histogram(model(data)[:, 5].flatten(), EDGES)[0]).abs().sum() <= 4
    layer.running_mean[[1, 6]] += 40
    shift = measure_shift(model, [data])['0']
    layer.weight[0] = 0  # of channels 0 to 3
    assert worst_channel(shift, layer) == 6


def test_training_is_normalized_by_the_batch():
    model = trained(nn.Sequential(nn.BatchNorm2d(3)))
    model[0].running_mean.fill_(50)
    with normalizing_by_batch(model, [model[0]]), collect_histograms(model, {'0': 1}) as counts:
        for batch in batches():
            model(batch)
    middle = (EDGES[:-1] + EDGES[1:]) / 2
    share = counts['0'] / counts['0'].sum()
    assert abs(float((share * middle).sum())) < 0.05 and abs(float((share * middle**2).sum()) - 1) < 0.1


def test_worst_channel_is_one_that_gamma_lets_through():
    model = nn.Sequential(nn.BatchNorm2d(3))
    model[0].running_mean.copy_(torch.tensor([1.0, 40.0, 9.0]))
    shift = measure_shift(model, batches())['0']
    assert worst_channel(shift, model[0]) == 1
    model[0].weight.data[1] = 0
    assert worst_channel(shift, model[0]) == 2
