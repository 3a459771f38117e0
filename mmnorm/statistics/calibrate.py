"""EvalNorm on a finished network: its BNs become EN, and alpha and beta are set (paper evalnorm, Section 3.4)."""

from collections.abc import Collection

import torch
from torch import nn

from mmnorm.blocks import is_plain_bn, replace_norms
from mmnorm.norms import EN
from mmnorm.norms.modes import keeping_modes

from .collect import bn_layers, unwrapped


def trained_by_batch(model: nn.Module) -> list[str]:
    """Names of the BN-like layers that normalize by batch statistics when the network trains.

    norm_eval, frozen stages and frozen layers keep the others in evaluation mode then: those were trained with the
    running statistics that they have.

    Args:
        model (nn.Module): A network; its modes stay.

    Returns:
        list[str]: In the order of the network.

    Raises:
        ValueError: The network has no BN-like layer.
    """
    model = unwrapped(model)
    with keeping_modes(model):
        model.train()
        return [name for name, layer in bn_layers(model).items() if layer.training]


def to_evalnorm(model: nn.Module, names: Collection[str] | None = None) -> list[str]:
    """Replace BNs by EN of ``mode='offline'``, with their parameters and statistics; in place.

    They evaluate as BN until :func:`~mmnorm.norms.estimate_offline` has estimated alpha and beta.

    Args:
        model (nn.Module): A network.
        names (collection[str]): Layers to replace. Default None: those that training normalizes by batch statistics,
            since the others have no batch size to correct for.

    Returns:
        list[str]: What was replaced; torch's and mmcv's BNs (synchronized ones by SyncEN), none of ours.

    Raises:
        ValueError: There is none to replace.
    """
    model = unwrapped(model)
    chosen = trained_by_batch(model) if names is None else names
    layers = {name: layer for name, layer in bn_layers(model).items() if name in chosen and is_plain_bn(layer)}
    if not layers:
        raise ValueError(
            'no BN of this network is trained by batch statistics (norm_eval=True and frozen stages fix '
            'them): EvalNorm has no normalization batch size to correct for'
        )
    synchronized = [name for name, layer in layers.items() if 'Sync' in type(layer).__name__]
    for norm, names in (('SyncEN', synchronized), ('EN', [name for name in layers if name not in synchronized])):
        if names:
            replace_norms(model, norm, names, mode='offline')
    return list(layers)


@torch.no_grad()
def apply_rule(model: nn.Module, power: int = 2) -> dict[str, float]:
    """Set alpha = beta = 1 / B^power in every EN layer that knows its normalization batch size B.

    Args:
        model (nn.Module): A network, such as :func:`~mmnorm.norms.estimate_offline` leaves; changed in place.
        power (int): 2 is evalnorm's rule of thumb, 1 its simple approximation (Figure 4, Table 1).

    Returns:
        dict[str, float]: Layer name to B.
    """
    sizes = {}
    for name, layer in model.named_modules():
        if isinstance(layer, EN) and layer.mean_batch_size > 0:
            sizes[name] = float(layer.mean_batch_size)
            for value in (layer.alpha, layer.beta):
                value.fill_(sizes[name] ** -power)
    return sizes
