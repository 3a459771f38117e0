"""Histograms of normalized activations, as evalnorm's Figure 1 compares them between training and evaluation."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mmnorm.norms import PlaneNorm

from .collect import unwrapped
from .shift import Shift

#: Bounds of the bins, in standard deviations.
EDGES = torch.linspace(-4, 4, 81)


@contextlib.contextmanager
def collect_histograms(model: nn.Module, channels: dict[str, int]) -> Iterator[dict[str, Tensor]]:
    """Count the normalized activations, before gamma and beta, of some channels in the forward passes made inside.

    Args:
        model (nn.Module): A network; its mode is up to the caller.
        channels (dict[str, int]): Layer name to one channel, whose gamma must not be 0.

    Yields:
        dict[str, Tensor]: Layer name to the counts in the bins of :data:`EDGES`; what lies outside is not counted.
    """
    counts = {name: torch.zeros(len(EDGES) - 1) for name in channels}

    def see(name, layer, y):
        channel = channels[name]
        weight, bias = (p[channel] if torch.is_tensor(p) else p for p in _gamma_beta(layer))
        normalized = (y.detach()[:, channel].float() - bias) / weight
        counts[name] += torch.histc(normalized.cpu(), len(EDGES) - 1, float(EDGES[0]), float(EDGES[-1]))

    handles = [
        unwrapped(model)
        .get_submodule(name)
        .register_forward_hook(lambda layer, args, y, name=name: see(name, layer, y))
        for name in channels
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def worst_channel(shift: Shift, layer: Any) -> int:
    """The channel of a layer that is shifted most, in mean and deviation together, among those that gamma lets through.

    Args:
        shift (Shift): Of the layer.
        layer (nn.Module): With as many channels as the shift.

    Returns:
        int: Its index.
    """
    size = shift.channel_mu.square() + shift.channel_sigma.square()
    weight, _ = _gamma_beta(layer)
    if torch.is_tensor(weight):
        weight = weight.detach().abs().cpu()
        size = torch.where(weight > 0.01 * weight.max(), size, -1)
    return int(size.argmax())


def _gamma_beta(layer):
    """Gamma and beta of each channel, (C,) each; 1 and 0 where there are none."""
    if isinstance(layer, PlaneNorm):
        return layer.gamma_beta
    return 1.0 if layer.weight is None else layer.weight, 0.0 if layer.bias is None else layer.bias
