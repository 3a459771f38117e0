"""Gates: sigmoids that a layer multiplies its weight by, and how a layer starts from a BN, which has none."""

import torch
from torch import Tensor

from .base import PlaneNorm
from .checks import warn_once


def initial_gate(start: float, like: Tensor) -> Tensor:
    """What a gate multiplies by before any training: the sigmoid of what its bias starts from, like another tensor."""
    return torch.sigmoid(torch.full_like(like, start))


def fold_initial_gate(layer: PlaneNorm, bias: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """BN's tensors with the weight divided by a layer's gate as it starts, so that the layer computes what the BN did.

    Args:
        layer (PlaneNorm): The layer that loads them.
        bias (str): The control parameter that is the gate's bias; tensors that have it are of such a layer, not a BN's.
        tensors (dict[str, Tensor]): As of :meth:`~mmnorm.norms.PlaneNorm.from_bn`.
    """
    if bias in tensors or 'weight' not in tensors:
        return tensors
    start = layer.control_parameters[bias]
    warn_once(
        f'{type(layer).__name__}: a BN checkpoint is loaded; its weights are divided by sigmoid({start:g}), so that '
        'the network computes what it computed with BN (fold_bn=False leaves them).'
    )
    return tensors | dict(weight=tensors['weight'] / initial_gate(start, tensors['weight']))
