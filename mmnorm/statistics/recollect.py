"""New running statistics for a trained network: sn's batch average, precise BN; AdaBN on another domain's data."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import nn

from mmnorm.norms.modes import feed, normalizing_by_batch
from mmnorm.norms.whitening import Whitening

from .collect import Moments, bn_layers, collect_moments, unwrapped


def recollect(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[Any, Any], Any] | None = None,
    names: Collection[str] | None = None,
    pooled: bool = True,
) -> dict[str, Moments]:
    """Replace running statistics by those of some batches, with frozen weights.

    The layers normalize each batch by its own statistics, as in training; everything else evaluates. With training
    data it is sn's batch average, in its pooled form also called precise BN; with data of another domain it is AdaBN.
    It is right for batches and images of any sizes and empty batches, and for our layers, whose running statistics may
    be those of something else than their input (RBN, BGN), or matrices: a matrix (BW, SW) becomes that of the
    covariance of all elements, where training averages those of the batches. Frozen layers keep theirs. A layer that is
    called several times in a pass gets what all calls have together, which may fit none of them:
    :func:`~mmnorm.blocks.per_level` gives it statistics for each.

    Args:
        model (nn.Module): Trained network; only running statistics change.
        batches (iterable): Of the training's size; on several processes each has as many of its own.
        forward (callable): ``(model, batch) -> None``; default ``model(batch)``.
        names (collection[str]): Layers to treat; default None: all BN-like ones.
        pooled (bool): Variance of all elements together, ``mean of (var + mean^2) - mean^2``, weighted by their
            number: what one batch of them would give, Bessel-corrected where the layer's running variance is (MABN's,
            SN's with ``unbiased`` and BCN's with ``estimate`` are not). False averages the batches' means and
            variances, as sn's text has it: the variance then lacks what lies between batches.

    Returns:
        dict[str, Moments]: What the new statistics are made of, by layer. Layers that no batch reached are not in it
        and keep their statistics.

    Raises:
        ValueError: There is no such layer, or no batch, or something is not finite; the network is as it was then.
    """
    layers = choose(bn_layers(unwrapped(model)), names)
    with normalizing_by_batch(model, list(layers.values())), collect_moments(model) as collected:
        feed(model, batches, forward, 'to recollect statistics from')
    reached = {name: collected[name] for name in layers if collected[name].batches}
    with torch.no_grad():
        for name, seen in reached.items():
            layer: Any = layers[name]
            layer.running_mean.copy_(seen.mean if pooled else seen.batch_mean)
            layer.running_var.copy_(_corrected(seen, pooled, getattr(layer, 'bessel', True)))
            if isinstance(layer, Whitening):
                layer.set_covariance(seen.covariance if pooled else seen.batch_squares)
    return reached


def _corrected(seen, pooled, bessel):
    """The variance as a layer keeps it."""
    if pooled:
        return seen.unbiased_var if bessel else seen.var
    return seen.batch_unbiased_var if bessel else seen.batch_var


def choose(layers: dict[str, nn.Module], names: Collection[str] | None) -> dict[str, nn.Module]:
    """Those of these layers that have such names (None: all) and are not frozen; ValueError if a name is unknown."""
    unknown = set(names or ()) - layers.keys()
    if unknown:
        raise ValueError(
            f'there is no layer with running statistics named {sorted(unknown)[0]}; there '
            f'are {len(layers)}; first: {next(iter(layers))}'
        )
    chosen = {
        name: layer
        for name, layer in layers.items()
        if (names is None or name in names) and not getattr(layer, 'frozen', False)
    }
    if not chosen:
        raise ValueError('every layer with running statistics is frozen: none may change')
    return chosen
