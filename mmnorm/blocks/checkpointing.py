"""Running statistics under activation checkpointing, which computes a training batch twice."""

from weakref import WeakKeyDictionary

from torch import nn

from mmnorm.norms import PlaneNorm
from mmnorm.norms.passes import recomputing, swap_buffers

_buffers: WeakKeyDictionary = WeakKeyDictionary()  # layer -> its own, while copies are in their place


def update_statistics_once(model: nn.Module) -> list[str]:
    """Have BNs update running statistics once in a training step where activation checkpointing runs them twice.

    For torch's and any other layers with running statistics (BN, SyncBN, InstanceNorm); those of mmnorm do so
    themselves. What a recomputation does to their buffers it does to copies. It may be called again, and holds for
    copies and pickles of the model.

    Args:
        model (nn.Module): Any network; its layers get forward hooks.

    Returns:
        list[str]: Names of the layers that it holds for.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if layer._buffers.get('running_mean') is not None and not isinstance(layer, PlaneNorm)
    }
    for layer in layers.values():
        if _lend_copies not in layer._forward_pre_hooks.values():
            layer.register_forward_pre_hook(_lend_copies)
            # always: checkpointing ends a recomputation by an exception
            layer.register_forward_hook(_give_back, always_call=True)
    return list(layers)


def _lend_copies(layer, args):
    if recomputing():
        _buffers[layer] = swap_buffers(layer)


def _give_back(layer, args, output):
    if recomputing() and layer in _buffers:
        layer._buffers.update(_buffers.pop(layer))
