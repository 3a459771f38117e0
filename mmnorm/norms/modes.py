"""Modes that a network is put into to look at its norms, and back from whatever happens."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

# what train() and eval() change: of any module, and of ours
_MODE = {'training', '_fresh', '_held'}


@contextlib.contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Every module of a network is in the mode afterwards that it is in now."""
    modes = [
        (module, name, vars(module).get(name)) for module in model.modules() for name in _MODE & vars(module).keys()
    ]
    try:
        yield
    finally:
        for module, name, mode in modes:
            setattr(module, name, mode)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode comes back."""
    with keeping_modes(model), torch.no_grad():
        model.eval()
        yield


@contextlib.contextmanager
def normalizing_by_batch(model: nn.Module, layers: list[nn.Module]) -> Iterator[None]:
    """These layers normalize by the statistics of each batch, everything else evaluates; no state changes.

    Args:
        model (nn.Module): A network.
        layers (list[nn.Module]): BN-like layers of it.
    """
    # momentum 0 holds the running statistics that BRN looks at; torch's BN makes NaN of an empty batch all the same
    buffers = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]
    counters = [
        (layer, name, value)
        for layer in layers
        for name, value in vars(layer).items()
        if isinstance(value, (bool, int, float, type(None)))
    ]
    try:
        with evaluating(model):
            for layer in layers:
                layer.training = True
                setattr(layer, 'momentum', 0.0)  # noqa: B010 (mypy takes attributes of modules for tensors)
            yield
    finally:
        for layer, name, counter in counters:
            setattr(layer, name, counter)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def feed(model: nn.Module, batches: Iterable, forward: Callable | None, purpose: str) -> None:
    """Feed a network with batches.

    Args:
        model (nn.Module): A network.
        batches (iterable): At least one.
        forward (callable or None): ``(model, batch) -> None``; None calls the model with the batch.
        purpose (str): What the batches are for, to be said if there are none.

    Raises:
        ValueError: There are no batches.
    """
    fed = False
    for batch in batches:
        forward(model, batch) if forward else model(batch)
        fed = True
    if not fed:
        raise ValueError(f'there are no batches {purpose}')
