"""EvalNorm's alpha and beta by estimation, while a network trains or on a finished one (evalnorm, Eq. 7 to 9).

The auxiliary loss is the mean over elements of ``|(x - mu_B) / sigma_B - (x - mean) / sqrt(var + eps)|``, x taken for a
constant, where mu_B and sigma_B are the batch's and mean and var those of :meth:`EN.evaluated`. It is taken over a
strided subset of the elements. The step rule is AdaGrad, projected on [0, 1].
"""

import contextlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, distributed, nn

from mmnorm.core import moments

from .modes import evaluating, feed

#: Training batches from one step of 'online' to the next; 'offline' makes one in each.
ONLINE_INTERVAL = 4
#: AdaGrad's learning rate for alpha and beta, which live in [0, 1].
LEARNING_RATE = 0.05
# What a step looks at: whole samples up to so many elements (one at least), and in them so many positions.
_SAMPLE_ELEMENTS = 2**18
_POSITIONS = 32


@torch.compiler.disable
def step_if_due(layer, x: Tensor) -> None:
    """Count a training batch (N, C, *S) of an EN layer, and make a step if it is that one's turn."""
    layer.batches_seen += 1
    if layer.batches_seen % layer.estimate_every == 0:
        step(layer, x.detach())


@torch.no_grad()
def step(layer, x: Tensor) -> None:
    """One step of an EN layer's alpha and beta down the auxiliary loss of a batch (N, C, *S) (evalnorm, Eq. 9).

    By the running statistics before that batch: a sample that is evaluated has no part in them either.
    """
    plane = moments(x)
    batch_mean, batch_var = _of_batch(layer, *plane, x[0:1, 0:1].numel())
    if not x.numel():
        return
    x = x[: max(1, _SAMPLE_ELEMENTS // x[0].numel())]
    mean, var = (moment[: len(x)] for moment in plane)
    batch_mean, batch_var = (s.expand_as(plane[0])[: len(x), :, None] for s in (batch_mean, batch_var))
    mixed_mean, mixed_var = layer.evaluated(mean, var)
    rstd = torch.rsqrt(mixed_var + layer.eps)
    distance = mean - layer.running_mean
    x = x.reshape(*x.shape[:2], -1)
    stride = -(-x.shape[2] // _POSITIONS)
    x = x[:, :, stride // 2 :: stride].to(mean.dtype)
    normalized = (x - mixed_mean[..., None]) * rstd[..., None]
    sign = (normalized - (x - batch_mean) * torch.rsqrt(batch_var + layer.eps)).sign_()
    slope_alpha = (sign.mean(2) * distance * rstd).mean().neg()
    dvar = var - layer.running_var + (1 - 2 * layer.beta) * distance.square()
    slope_beta = ((sign * normalized).mean(2) * rstd.square() * dvar).mean() / -2
    slopes = torch.stack([slope_alpha, slope_beta]).to(layer.squared_gradients)
    layer.squared_gradients.addcmul_(slopes, slopes)
    steps = slopes * torch.rsqrt(layer.squared_gradients.clamp(min=1e-30)) * LEARNING_RATE
    for value, change in zip((layer.alpha, layer.beta), steps):
        value.sub_(change).clamp_(0, 1)


def _of_batch(layer, mean, var, count):
    """What training normalizes a batch by, without tracking it."""
    tracks, layer.track_running_stats = layer.track_running_stats, False
    try:
        return layer.batch_statistics(mean, var, count)
    finally:
        layer.track_running_stats = tracks


def estimate_offline(
    model: nn.Module, batches: Iterable, forward: Callable | None = None
) -> dict[str, tuple[float, float]]:
    """Estimate alpha and beta of the EN layers of a finished network (evalnorm, Section 3.4, offline estimation).

    EN layers normalize each batch by its own statistics, everything else evaluates. Alpha and beta change, and the sums
    of AdaGrad, which start at 0.

    Args:
        model (nn.Module): Network with EN layers of ``mode='offline'`` or ``'online'``.
        batches (iterable): Training batches, of the training's size; one step per batch, a few hundred are plenty.
        forward (callable): ``(model, batch) -> None``. Default ``model(batch)``; for an mmengine model
            ``lambda model, batch: model.test_step(batch)``.

    Returns:
        dict[str, tuple[float, float]]: Layer name to alpha and beta.

    Raises:
        ValueError: The network has no such layer, or there are no batches.
    """
    layers = {name: layer for name, layer in model.named_modules() if getattr(layer, 'is_estimated', False)}
    if not layers:
        raise ValueError("the network has no EN layer to estimate: set mode='offline' in its norm_cfg")
    with evaluating(model), _estimating(list(layers.values())):
        feed(model, batches, forward, 'to estimate alpha and beta on')
    _average_over_ranks(list(layers.values()))
    return {name: (float(layer.alpha), float(layer.beta)) for name, layer in layers.items()}


def _average_over_ranks(layers):
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    buffers = [buffer for layer in layers for buffer in (layer.alpha, layer.beta, layer.mean_batch_size)]
    values = torch.stack(buffers) / distributed.get_world_size()
    distributed.all_reduce(values)
    for buffer, value in zip(buffers, values):
        buffer.copy_(value)


@contextlib.contextmanager
def _estimating(layers):
    """Normalize by batch statistics and estimate in these layers of an evaluated network; put the rest back after."""
    before = [
        (layer, layer.momentum, layer.estimate_every, layer.num_batches_tracked.clone(), layer.mean_batch_size.clone())
        for layer in layers
    ]
    for layer in layers:
        layer.training, layer.momentum, layer.estimate_every, layer.taught = True, 0.0, 1, True
        layer.squared_gradients.zero_()
    try:
        yield
    finally:
        for layer, momentum, interval, batches, size in before:
            layer.momentum, layer.estimate_every, layer.taught = momentum, interval, None
            layer.num_batches_tracked.copy_(batches)
            if size > 0:  # a size that training did not tell is that of these batches
                layer.mean_batch_size.copy_(size)
