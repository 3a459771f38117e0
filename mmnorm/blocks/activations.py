"""Layers between a residual block's addition and the ReLU behind it, in blocks whose calls share one ReLU."""

from functools import partial

from torch import nn
from torch.nn import functional as F


def insert_at_end(name: str, block: nn.Module, attribute: str, layer: nn.Module) -> None:
    """Put a layer between the addition of a residual block and the ReLU behind it.

    A block of the hosts calls one ReLU behind each of its norms but the last, and behind the addition. The former then
    belong to the convolutions that take their results, the latter follows the new layer.

    Args:
        name (str): Of the block, for errors.
        block (nn.Module): A BasicBlock or Bottleneck of mmdet's, mmseg's or mmpretrain's ResNets; changed in place.
        attribute (str): What the block calls the layer.
        layer (nn.Module): The layer.

    Raises:
        TypeError: The block has another forward pass, plugins, or another activation.
    """
    check_block(name, block)
    relu, block.relu = block.relu, nn.Identity()
    for part in ('conv2', 'conv3'):
        if hasattr(block, part):  # a BasicBlock has two
            block.get_submodule(part).register_forward_pre_hook(_rectify_input)
    block.add_module(attribute, layer)
    block.add_module('end_relu', relu)  # type: ignore[arg-type]
    for part in (attribute, 'end_relu'):
        block.register_forward_hook(partial(_pass_through, part))


def check_block(name: str, block: nn.Module) -> None:
    """Refuse, by a TypeError, a block of which it is not known where it calls its ReLU."""
    forward, kind = type(block).forward, f'{name} ({type(block).__name__})'
    known = forward.__qualname__ in ('BasicBlock.forward', 'Bottleneck.forward')
    if not known or not forward.__module__.endswith('.backbones.resnet'):
        raise TypeError(f"{kind}: its ReLU cannot be moved, its forward pass is not that of the hosts' ResNets")
    if type(block.relu) is not nn.ReLU:
        raise TypeError(f'{kind}: its activation is {type(block.relu).__name__}, only that of a ReLU can be moved')
    if getattr(block, 'with_plugins', False):
        raise TypeError(f'{kind}: its ReLU cannot be moved, since its plugins take what the ReLU gives')


def _rectify_input(conv, inputs):
    return F.relu(inputs[0], inplace=True), *inputs[1:]  # in place, as the hosts' ReLU


def _pass_through(part, block, inputs, output):
    return block.get_submodule(part)(output)
