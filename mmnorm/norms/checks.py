"""What is said to a user about a layer's arguments and inputs, once per process where it is a warning."""

import inspect
import warnings

import torch
from torch import Tensor, distributed, nn

_warned: set[str] = set()


def warn_once(message: str, key: str | None = None) -> None:
    """Warn a user once per process, on the first rank only; once for a key, if messages name one layer of many."""
    if said(key or message) and (not distributed.is_initialized() or distributed.get_rank() == 0):
        warnings.warn(message, stacklevel=3)


def said(key: str) -> bool:
    """Note that something is said (a message, or the key of one): whether it is now for the first time."""
    first = key not in _warned
    _warned.add(key)
    return first


def called(layer: nn.Module) -> str:
    """What messages call a layer: its class, and its name in the network whose forward pass runs, if any does.

    The network is found on the stack of calls, so that a name costs nothing until there is something to say.
    """
    kind = type(layer).__name__
    if torch.compiler.is_compiling():
        return kind
    calling: dict[nn.Module, None] = {}
    frame = inspect.currentframe()
    while frame is not None:
        module = frame.f_locals.get('self')
        if isinstance(module, nn.Module):
            calling[module] = None
        frame = frame.f_back
    for network in reversed(calling):  # the outermost first
        for name, module in network.named_modules():
            if module is layer and name:
                return f'{kind} {name}'
    return kind


def check_input(layer: nn.Module, x: Tensor, channels: int) -> None:
    """Raise a TypeError or ValueError naming the layer if ``x`` is not floating point of shape (N, channels, *S)."""
    if not x.is_floating_point():
        raise TypeError(f'{called(layer)} normalizes floating point tensors, got {x.dtype}')
    if x.dim() < 2 or x.shape[1] != channels:
        raise ValueError(
            f'{called(layer)} was built for {channels} channels, got an input of shape {tuple(x.shape)}: '
            f'axis 1 must have {channels}'
        )


def check_groups(where: str, groups: int, channels: int, argument: str = 'num_groups') -> None:
    """Raise a ValueError that names what fits if ``groups`` do not divide ``channels``; ``where`` names the layer."""
    if groups < 1 or channels % groups:
        divisors = [d for d in range(1, channels + 1) if channels % d == 0]
        raise ValueError(
            f'{where}: {argument}={groups} does not divide {channels} channels; choose one of '
            f'{", ".join(map(str, divisors))}'
        )


def refuse_script(layer: nn.Module) -> None:
    """Raise the error of a layer that torch.jit.script is to compile, which cannot read its forward."""
    raise NotImplementedError(
        f'torch.jit.script cannot compile {type(layer).__name__}; torch.jit.trace(model, images) and '
        'torch.export.export(model, (images,)) take a model with norms of mmnorm'
    )
