"""ReLUs of a host's backbone: which one follows which norm, how one is taken away, and what comes in its place."""

from collections.abc import Collection, Iterable
from functools import partial

from torch import nn
from torch.nn import functional as F

from mmnorm.norms import FRN, TLU

from .layers import channels_of, is_conv_module


def insert_at_end(name: str, block: nn.Module, attribute: str, layer: nn.Module) -> None:
    """Put a layer between the addition of a residual block and the ReLU behind it.

    Args:
        name (str): Of the block, for errors.
        block (nn.Module): A BasicBlock or Bottleneck of mmdet's, mmseg's or mmpretrain's ResNets; changed in place.
        attribute (str): What the block calls the layer.
        layer (nn.Module): The layer.

    Raises:
        TypeError: The block has another forward pass, plugins, or another activation.
    """
    _split_relu(name, block, _norm_names(block))
    block.add_module(attribute, layer)
    block.register_forward_hook(partial(_pass_through, attribute))
    block.register_forward_hook(_rectify_output)


def take_relus(
    backbone: nn.Module, blocks: Iterable[tuple[str, nn.Module]], norms: Collection[str], trains: bool = True
) -> set[str]:
    """Take away the ReLU that each of these norms has behind it, for norms that have a threshold of their own.

    What follows the last norm of a residual block is the addition: :class:`~mmnorm.norms.TLU` comes in the place of
    the ReLU behind that, as ``tlu`` of the block.

    Args:
        backbone (nn.Module): Of mmdet, mmseg or mmpretrain; changed in place.
        blocks (iterable[tuple[str, nn.Module]]): Its residual blocks, with their names.
        norms (collection[str]): Names of norms in it.
        trains (bool): Whether what the TLUs have is trained.

    Returns:
        set[str]: Those that a ReLU followed, with nothing between.

    Raises:
        TypeError: It is not known what follows a norm, or it is another activation; the message names it.
    """
    taken, inside = set(), set()
    for name, block in blocks:
        inner = {f'{name}.{norm}' for norm in _norm_names(block)}
        inside |= inner
        if not inner & set(norms):
            continue
        *direct, last = (f'{name}.{norm}' for norm in _norm_names(block))
        _split_relu(name, block, [norm.rpartition('.')[2] for norm in direct if norm not in norms])
        taken |= set(direct) & set(norms)
        if last in norms:
            block.add_module('tlu', TLU(channels_of(backbone.get_submodule(last))).requires_grad_(trains))
            block.register_forward_hook(partial(_pass_through, 'tlu'))
        else:
            block.register_forward_hook(_rectify_output)
    return taken | {name for name in norms if name not in inside and _take_relu(backbone, name)}


def relus_behind_tlu(model: nn.Module) -> list[str]:
    """Names of the norms with a threshold (FRN with ``tlu``) that a ReLU follows, as far as the hosts' modules tell."""
    return [
        f'{name}.{leaf}' if name else leaf
        for name, parent in model.named_modules()
        for leaf, child in parent.named_children()
        if isinstance(child, FRN)
        and child.tlu
        and isinstance(getattr(parent, _behind(parent, leaf) or '', None), (nn.ReLU, nn.ReLU6))
    ]


def _behind(parent, leaf):
    """The attribute of a module that is called behind a norm of it, or, of a block, that is the activation; or None."""
    if is_conv_module(parent):
        return 'activate' if parent.with_activation and parent.order[-1] == 'act' else None
    names = [*parent._modules, None]
    if isinstance(parent, nn.Sequential):
        return names[names.index(leaf) + 1]
    return 'relu' if 'relu' in names else None


def _norm_names(block):
    """The attributes of a residual block that are its norms, in their order; [] if it names none."""
    return [getattr(block, f'norm{p}_name') for p in (1, 2, 3) if hasattr(block, f'norm{p}_name')]


def _split_relu(name, block, kept):
    """Take the ReLU out of a block, which calls it behind each norm but the last, and behind the addition.

    Norms that are to keep it have it then in the convolution that takes what they give.
    """
    forward, kind = type(block).forward, f'{name} ({type(block).__name__})'
    known = forward.__qualname__ in ('BasicBlock.forward', 'Bottleneck.forward')
    if not known or not forward.__module__.endswith('.backbones.resnet'):
        raise TypeError(f"{kind}: its ReLU cannot be moved, its forward pass is not that of the hosts' ResNets")
    _check_relu(name, block, block.relu)
    if getattr(block, 'with_plugins', False):
        raise TypeError(f'{kind}: its ReLU cannot be moved, since its plugins take what the ReLU gives')
    block.relu = nn.Identity()
    for number, norm in enumerate(_norm_names(block)[:-1], start=2):
        if norm in kept:
            getattr(block, f'conv{number}').register_forward_pre_hook(_rectify_input)


def _take_relu(backbone, name):
    """Take away the ReLU behind a norm that is outside of blocks, or in a downsample; whether there was one."""
    parent_name, _, leaf = name.rpartition('.')
    parent = backbone.get_submodule(parent_name)
    attribute = _behind(parent, leaf)
    stem = attribute is not None and leaf == getattr(parent, 'norm1_name', None)
    if not (stem or is_conv_module(parent) or isinstance(parent, nn.Sequential)):
        raise TypeError(f'{name}: it is not known whether a ReLU follows it in {type(parent).__name__}')
    if attribute is None:
        return False
    _check_relu(name, parent, parent._modules[attribute])
    parent.add_module(attribute, nn.Identity())
    return True


def _check_relu(name, parent, activation):
    if type(activation) is not nn.ReLU:
        raise TypeError(
            f'{name} ({type(parent).__name__}): its activation is {type(activation).__name__}, only that of a ReLU '
            'can be moved'
        )


def _rectify_input(conv, inputs):
    return F.relu(inputs[0], inplace=True), *inputs[1:]  # in place, as the hosts' ReLU


def _rectify_output(block, inputs, output):
    return F.relu(output, inplace=True)


def _pass_through(part, block, inputs, output):
    return block.get_submodule(part)(output)
