"""Estimation shift: how far a trained BN's statistics are from those of its input (paper xbn, Definitions 1 and 2)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmnorm.norms.modes import evaluating, feed

from .collect import INPUT, Moments, bn_layers, collect_moments, used_statistics


@dataclass
class Shift:
    """Expected and estimated statistics of one layer; tensors are (K,), float64, on the CPU.

    K is the number of channels whose running statistics the layer uses (of groups in BGN, of the BN half in IBN).

    Attributes:
        mean, var: Expected: of the layer's input over the data (Definition 1). The variance is biased.
        running_mean, running_var: Estimated: what the layer normalizes by.
        eps (float): The layer's.
        count (float): Number of elements behind each expected value.
        calls (list[Shift]): The same of what the first, second ... call in each pass gets, of a layer that is called
            several times (a head shared by FPN levels); else empty. Training normalizes each of these calls by itself,
            so all together may fit the running statistics where none does.
    """

    mean: Tensor
    var: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps: float
    count: float
    calls: list['Shift'] = field(default_factory=list)

    @property
    def esm_mu(self) -> float:
        """ESM_mu = ||estimated mean - expected mean||_2 (Definition 2)."""
        return float(torch.linalg.vector_norm(self.running_mean - self.mean))

    @property
    def esm_sigma(self) -> float:
        """ESM_sigma = ||estimated - expected standard deviation||_2 (Definition 2)."""
        return float(torch.linalg.vector_norm(self.running_var.sqrt() - self.var.sqrt()))

    @property
    def channel_mu(self) -> Tensor:
        """(expected - estimated mean) / sqrt(estimated var + eps): the mean of the normalized channel, which training
        holds at 0."""
        return (self.mean - self.running_mean) / (self.running_var + self.eps).sqrt()

    @property
    def channel_sigma(self) -> Tensor:
        """(expected - estimated deviation) / sqrt(estimated var + eps): what the deviation of the normalized channel
        has beyond the 1 that training holds it at."""
        return (self.var.sqrt() - self.running_var.sqrt()) / (self.running_var + self.eps).sqrt()

    @property
    def relative_mu(self) -> float:
        """Root mean square of :attr:`channel_mu`: ESM_mu in units of the layer's own scale, so that layers compare."""
        return float(self.channel_mu.square().mean().sqrt())

    @property
    def relative_sigma(self) -> float:
        """Root mean square of :attr:`channel_sigma`."""
        return float(self.channel_sigma.square().mean().sqrt())

    @property
    def figures(self) -> dict[str, float]:
        """The four figures of the layer by name (dict[str, float]), as they are logged and written."""
        return dict(
            esm_mu=self.esm_mu,
            esm_sigma=self.esm_sigma,
            relative_mu=self.relative_mu,
            relative_sigma=self.relative_sigma,
        )

    @property
    def size(self) -> float:
        """:attr:`relative_mu` and :attr:`relative_sigma` together, the root of their squares' sum."""
        return math.hypot(self.relative_mu, self.relative_sigma)


def measure_shift(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[Any, Any], Any] | None = None,
    input_statistics: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Shift]:
    """Measure the estimation shift of every BN-like layer in one pass of the evaluated network (xbn, Definition 2).

    Args:
        model (nn.Module): Trained network; it is put into evaluation mode for the pass, and back.
        batches (iterable): The test set; on several processes each has its share.
        forward (callable): ``(model, batch) -> None``. Default ``model(batch)``; for an mmengine model
            ``lambda model, batch: model.test_step(batch)``.
        input_statistics (tuple[Tensor, Tensor]): Mean and variance of the training set's input, per channel, which
            layer 0 is compared with. Default None: layer 0 is left out.

    Returns:
        dict[str, Shift]: By layer name, in the order of the network, 'input' (layer 0) first. Layers that no pass
        reached are left out. What each call of a shared layer gets is in its ``calls``.

    Raises:
        ValueError: There is no BN-like layer, or no batch, or something is not finite.
    """
    with evaluating(model), collect_moments(model) as collected:
        feed(model, batches, forward, 'to measure the estimation shift on')
    return estimation_shift(model, collected, input_statistics)


def estimation_shift(
    model: nn.Module, collected: dict[str, Moments], input_statistics: tuple[Tensor, Tensor] | None = None
) -> dict[str, Shift]:
    """The estimation shift from moments that :func:`collect_moments` gave in an evaluation; see measure_shift."""
    estimated: dict[str, Any] = {
        name: (layer.running_mean, layer.running_var) for name, layer in bn_layers(model).items()
    }
    if input_statistics is not None:
        estimated[INPUT] = [torch.as_tensor(value) for value in input_statistics]
    shifts = _compare(model, collected, estimated)
    for name, shift in shifts.items():
        for call in collected[name].calls:
            shift.calls += _compare(model, {name: call}, estimated).values()
    return shifts


def domain_shift(model: nn.Module, collected: dict[str, Moments], reference: dict[str, Moments]) -> dict[str, Shift]:
    """As :func:`estimation_shift`, with the moments of other data in the place of the running statistics.

    Args:
        model (nn.Module): The network.
        collected (dict[str, Moments]): Of an evaluation on some data, by :func:`collect_moments`.
        reference (dict[str, Moments]): Of an evaluation on data of another domain, such as training images.

    Returns:
        dict[str, Shift]: By layer name; layers that one of the two did not reach are left out.
    """
    return _compare(model, collected, {name: (seen.mean, seen.var) for name, seen in reference.items() if seen.batches})


def _compare(model, collected, estimated):
    layers: dict[str, Any] = dict(bn_layers(model))
    shifts = {}
    for name, seen in collected.items():
        if not seen.batches or name not in estimated:
            continue
        layer: Any = layers.get(name)
        used = used_statistics(layer)
        mean, var, running_mean, running_var = (
            value.detach().double().cpu()[used] for value in (seen.mean, seen.var, *estimated[name])
        )
        shifts[name] = Shift(mean, var, running_mean, running_var, layer.eps if layer else 0.0, float(seen.count.max()))
    return shifts
