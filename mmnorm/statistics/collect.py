"""The statistics of what a network's BN-like layers get: streaming, over batches and ranks, in float64."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DataParallel, DistributedDataParallel

from mmnorm.core import moments, pool, products
from mmnorm.norms import PlaneNorm

#: The name of layer 0, the network's input, among the layers.
INPUT = 'input'


@dataclass
class Moments:
    """Mean and variance of what a layer got so far, pooled over batches by Chan's update, in float64.

    Memory is that of a few vectors of the running statistics' size K, however much is added; of a layer that whitens,
    of a few covariances, (G, D, D) with G * D = K.

    Attributes:
        count (Tensor): Number of elements behind each mean, (K,).
        mean (Tensor): (K,).
        squares (Tensor): Sum of squared distances to the mean, (K,), or of their products, (G, D, D).
        batches (int): Number of batches; 0: nothing was added, and the others are no tensors yet.
        batch_mean, batch_squares (Tensor): Plain averages over the batches of their means, (K,), and biased variances,
            of the shape of the squares.
        batch_unbiased_var (Tensor): Plain average over the batches of their Bessel-corrected variances, (K,).
        calls (list[Moments]): The same of the first, second ... call in a pass of the network, where a layer is called
            several times in each, always as often; else empty. Known at the end of :func:`collect_moments`.
    """

    count: Any = 0.0
    mean: Any = 0.0
    squares: Any = 0.0
    batches: int = 0
    batch_mean: Any = 0.0
    batch_squares: Any = 0.0
    batch_unbiased_var: Any = 0.0
    calls: list['Moments'] = field(default_factory=list)

    def add(self, mean: Tensor, var: Tensor, count: int | Tensor) -> None:
        """Add a batch.

        Args:
            mean (Tensor): (K,).
            var (Tensor): Biased, (K,), or the covariances, (G, D, D).
            count (int or Tensor): Number of elements behind each.
        """
        mean, var = mean.double(), var.double()
        count = torch.as_tensor(count, dtype=torch.float64, device=mean.device).expand_as(mean)
        self._pool(mean, var * _for_each(count, var), count)
        self._average(mean, var, _variances(var) * (count / (count - 1).clamp(min=1)), 1)

    def merge(self, other: 'Moments') -> None:
        """Add what another one got."""
        if other.batches:
            self._pool(other.mean, other.squares, other.count)
            self._average(other.batch_mean, other.batch_squares, other.batch_unbiased_var, other.batches)

    def _pool(self, mean, squares, count):
        total = self.count + count
        share = count / total.clamp(min=1)
        distance = mean - self.mean
        between = products(distance.reshape(squares.shape[: max(squares.dim() - 1, 1)]), squares)
        self.squares = self.squares + squares + between * _for_each(self.count * share, squares)
        self.mean = self.mean + distance * share
        self.count = total

    def _average(self, mean, var, unbiased_var, batches):
        self.batches += batches
        share = batches / self.batches
        self.batch_mean = self.batch_mean + (mean - self.batch_mean) * share
        self.batch_squares = self.batch_squares + (var - self.batch_squares) * share
        self.batch_unbiased_var = self.batch_unbiased_var + (unbiased_var - self.batch_unbiased_var) * share

    @property
    def var(self) -> Tensor:
        """Biased variance, (K,)."""
        return _variances(self.squares) / self.count.clamp(min=1)

    @property
    def unbiased_var(self) -> Tensor:
        """Bessel-corrected, as torch keeps running variances, (K,)."""
        return _variances(self.squares) / (self.count - 1).clamp(min=1)

    @property
    def batch_var(self) -> Tensor:
        """Plain average over the batches of their biased variances, (K,)."""
        return _variances(self.batch_squares)

    @property
    def covariance(self) -> Tensor:
        """Biased, (G, D, D), of a layer that whitens."""
        return self.squares / _for_each(self.count.clamp(min=1), self.squares)

    def on_cpu(self) -> 'Moments':
        values: dict[str, Any] = {
            name: value.cpu() if torch.is_tensor(value) else value for name, value in vars(self).items()
        }
        return Moments(**values | dict(calls=[call.on_cpu() for call in self.calls]))


def _variances(squares):
    """Of variances, or covariances: one for each mean, (K,)."""
    return squares if squares.dim() == 1 else squares.diagonal(dim1=1, dim2=2).flatten()


def _for_each(values, squares):
    """A value for each mean, (K,), in a shape that broadcasts to squares."""
    return values if squares.dim() == 1 else values.view(*squares.shape[:2], 1)


class _Calls:
    """Moments of the calls of a layer by their place in a pass of the network."""

    def __init__(self):
        self.moments, self.numbers, self.made = [], set(), None  # calls in this pass; None before the first

    def start_pass(self):
        if self.made:
            self.numbers.add(self.made)
        self.made = 0

    def add(self, *moments):
        """Count a call, and add what it got if that is not empty."""
        if self.made is None or len(self.numbers) > 1:
            self.numbers.update((0, 1))  # no pass, or another number in each, as in heads that go over objects
            self.moments.clear()
            return
        self.made += 1
        if self.made > len(self.moments):
            self.moments.append(Moments())
        if moments:
            self.moments[self.made - 1].add(*moments)

    def in_turn(self):
        """What each call got, if there are several in each pass and always as many."""
        self.start_pass()
        same = len(self.numbers) == 1 and len(self.moments) > 1 and all(call.batches for call in self.moments)
        return self.moments if same else []


def bn_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a network that normalize by running statistics: torch's, mmcv's and ours.

    Args:
        model (nn.Module): Any network, wrapped for several processes or not.

    Returns:
        dict[str, nn.Module]: By name, in the order of the network.

    Raises:
        ValueError: It has none.
    """
    layers: dict[str, nn.Module] = {
        name: layer
        for name, layer in unwrapped(model).named_modules()
        if isinstance(layer, _BatchNorm)
        and layer.running_mean is not None
        and layer.running_mean[used_statistics(layer)].numel()
    }
    if not layers:
        raise ValueError(
            f'{type(unwrapped(model)).__name__} has no layer with running statistics (BN, SyncBN, or a '
            'norm of mmnorm that keeps them): there is nothing to measure'
        )
    return layers


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, without what runs it on several processes."""
    wrapped = isinstance(model, (DataParallel, DistributedDataParallel)) or any(
        kind.__name__ == 'FullyShardedDataParallel' for kind in type(model).__mro__
    )  # whose import costs time
    return getattr(model, 'module') if wrapped else model  # noqa: B009 (what it is, mypy cannot know)


def used_statistics(layer: nn.Module) -> slice:
    """Which of its running statistics (a slice) a layer uses: all of them but for some of ours."""
    return layer.used_statistics if isinstance(layer, PlaneNorm) else slice(None)


@contextlib.contextmanager
def collect_moments(model: nn.Module) -> Iterator[dict[str, Moments]]:
    """Collect the moments of what every BN-like layer gets in the forward passes made inside.

    A layer that is used several times in a pass (a head shared by FPN levels) counts each time, and what each of its
    calls gets is kept by itself as well; a pass is one forward of the network. An empty input (a RoI head without
    proposals) does not count. On leaving they are pooled over all ranks, so all ranks must leave.

    Args:
        model (nn.Module): Any network.

    Yields:
        dict[str, Moments]: By layer name, in the order of the network; :data:`INPUT` first, per channel of the first
        floating point tensor that the network is called with. A layer that was not run has no ``batches``.

    Raises:
        ValueError: The network has no BN-like layer, or (on leaving) something that it got is not finite.
    """
    model = unwrapped(model)
    layers = bn_layers(model)
    collected = {name: Moments() for name in (INPUT, *layers)}
    folding: dict[Any, Any] = {
        module: module.efficient_conv_bn_eval_forward
        for module in model.modules()
        if getattr(module, 'efficient_conv_bn_eval_forward', None)
    }
    for module in folding:
        module.efficient_conv_bn_eval_forward = None  # it passes the norm by
    calls = {name: _Calls() for name in layers}

    def start(model, args, kwargs):
        for of_layer in calls.values():
            of_layer.start_pass()
        _see_input(collected[INPUT], args, kwargs)

    handles = [model.register_forward_pre_hook(start, with_kwargs=True)]
    handles += [
        layer.register_forward_pre_hook(functools.partial(_see, collected[name], calls[name]))
        for name, layer in layers.items()
    ]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()
        for module, forward in folding.items():
            module.efficient_conv_bn_eval_forward = forward
    for name, of_layer in calls.items():
        collected[name].calls = of_layer.in_turn()
    _pool_ranks(collected)
    _check_finite(collected, layers)


@torch.no_grad()
def _see(seen, calls, layer, args):
    x = args[0]
    if not x.numel():
        calls.add()
        return
    found = layer.tracked_moments(x) if isinstance(layer, PlaneNorm) else _channel_moments(x)
    seen.add(*found)
    calls.add(*found)


@torch.no_grad()
def _see_input(seen, args, kwargs):
    for x in (*args, *kwargs.values()):
        if torch.is_tensor(x) and x.is_floating_point() and x.dim() > 1:
            if x.numel():
                seen.add(*_channel_moments(x))
            return


def _channel_moments(x):
    """Mean and biased variance of each channel, (C,) in float64, and the number of elements behind each."""
    mean, var = moments(x)
    mean, var = pool(mean.double(), var.double(), 0)
    return mean[0], var[0], x.numel() // x.shape[1]


def _pool_ranks(collected):
    """Pool in place what each rank collected, in one collective; every rank gets the same."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    of_ranks: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(of_ranks, {name: seen.on_cpu() for name, seen in collected.items()})
    for name in collected:
        of_layer = [of_rank[name] for of_rank in of_ranks if of_rank[name].batches]
        collected[name] = _merged(of_layer)
        if len({len(seen.calls) for seen in of_layer}) == 1:
            collected[name].calls = [_merged(of_call) for of_call in zip(*(seen.calls for seen in of_layer))]


def _merged(parts):
    whole = Moments()
    for part in parts:
        whole.merge(part)
    return whole


def _check_finite(collected, layers):
    for name, seen in collected.items():
        if seen.batches and not (seen.mean.isfinite().all() and seen.squares.isfinite().all()):
            where = 'the input of the network' if name == INPUT else f'the input of {name}'
            raise ValueError(
                f'{where} has values that are not finite (NaN or inf): check the data and the '
                'checkpoint; no statistics can be computed'
            )
        # before what they make of the layers behind
        if name in layers and not layers[name].training and not _usable(layers[name]):
            raise ValueError(
                f'the running statistics of {name} are not finite and positive: the checkpoint is from '
                'a training that diverged; recollect them'
            )


def _usable(layer):
    return bool((layer.running_mean + layer.running_var).isfinite().all() and (layer.running_var >= 0).all())
