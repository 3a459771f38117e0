"""Compile the norms of a network, one graph for all widths."""

from contextlib import nullcontext

import torch
from torch import nn

from mmnorm.norms import BatchFreeNorm, PlaneNorm
from mmnorm.norms.passes import differentiated, keeping_buffers, recomputing

# By default the sizes of parameters and the numbers that a module holds are constants of a graph: each width of a
# network gets a graph of its own, and beyond torch's limit of 8 for a function the rest runs uncompiled.
_WIDTHS_VARY = dict(
    force_parameter_static_shapes=False,
    force_nn_module_property_static_shapes=False,
    allow_unspec_int_on_nn_module=True,
)


def compile_norms(model: nn.Module, **kwargs) -> list[str]:
    """Compile each norm of ours in a network by itself, for any image size, batch size and number of channels.

    ``layer.compile(dynamic=True)`` makes a graph for each width, and a ResNet-50 has more widths than torch keeps
    graphs of a function. Here layers of a kind share one graph for training and one for evaluation. It stays with the
    layers, not with copies of them.

    Args:
        model (nn.Module): A network or a layer; changed in place.
        kwargs: For ``torch.compile``, such as backend; ``dynamic`` is True.

    Returns:
        list[str]: Names of the layers.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (PlaneNorm, BatchFreeNorm))}
    for layer in layers.values():
        layer._compiled_call_impl = _called(layer, torch.compile(layer._call_impl, dynamic=True, **kwargs))
    return list(layers)


def _called(layer, compiled):
    """Call a compiled layer with the settings above, which hold while it is traced.

    What a graph does not know is decided here: that activation checkpointing calls the layer a second time, when its
    statistics are kept, and that a pass without gradients is the first one of reentrant checkpointing, which trains.
    """

    def call(*args, **kwargs):
        if differentiated() and not torch.is_grad_enabled():
            return layer._call_impl(*args, **kwargs)
        with torch._dynamo.config.patch(_WIDTHS_VARY), keeping_buffers(layer) if recomputing() else nullcontext():
            return compiled(*args, **kwargs)

    return call
