"""Normalized activations of single channels (evalnorm, Figure 1)."""

import torch
from torch import nn

from mmnorm.statistics import EDGES, collect_histograms, measure_shift, normalizing_by_batch, worst_channel

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
