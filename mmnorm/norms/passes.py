"""Which pass a layer is in: one of training, one that gradients follow, or activation checkpointing's second."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

# A layer's calls that may wait for their recomputation: the uses in a pass times the micro-batches in flight
_MOST_CALLS = 64
# How far statistics may be off that are computed a second time, in deviations: more than rounding, less than a batch
_TOLERANCE = 1e-3

_first_passes: WeakKeyDictionary = WeakKeyDictionary()  # layer -> deque of calls [mean, var, values, recomputed]


def differentiated() -> bool:
    """Whether gradients may follow this pass: they are enabled, or only reentrant checkpointing has them off."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.is_grad_enabled()
    # in the forward of an autograd.Function, as reentrant checkpointing's first pass is, torch has forward-mode
    # gradients off too; no_grad leaves those on
    return not torch._C._is_fwd_grad_enabled() and not torch.is_inference_mode_enabled()


def recomputing() -> bool:
    """Whether a call is made within a backward pass, as activation checkpointing, reentrant or not, makes it again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _saving_is_hooked():
    """Whether something is done to the tensors that a graph saves, as checkpointing that is not reentrant does."""
    if torch.compiler.is_compiling():
        return False
    hooks = getattr(torch._C._autograd, '_top_saved_tensors_default_hooks', None)  # newer than the oldest that works
    return hooks is None or hooks(True) is not None


def may_be_repeated() -> bool:
    """Whether activation checkpointing may compute what is computed now a second time, or does so."""
    # in reentrant checkpointing gradients are off, the other kind hooks what a graph saves
    return recomputing() or (_saving_is_hooked() if torch.is_grad_enabled() else differentiated())


def beside_saving_hooks(statistics: Callable) -> Callable:
    """Statistics, of the moment plane or GW's, whose graph saves its tensors itself, whatever hooks there are for that.

    They are small, and the backward pass goes through their graph in a pass of its own: for each such one checkpointing
    that is not reentrant would compute all that it covers again.
    """
    if not _saving_is_hooked():
        return statistics

    def beside(*args):
        with torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
            return statistics(*args)

    return beside


def _as_it_is(tensor):
    return tensor


@contextlib.contextmanager
def keeping_buffers(layer: nn.Module) -> Iterator[None]:
    """What a layer does to its buffers inside it does to copies."""
    own = swap_buffers(layer)
    try:
        yield
    finally:
        layer._buffers.update(own)


def swap_buffers(layer: nn.Module) -> dict[str, Tensor | None]:
    """Put copies in the place of a layer's buffers, which are returned."""
    own = dict(layer._buffers)
    layer._buffers.update({name: buffer if buffer is None else buffer.clone() for name, buffer in own.items()})
    return own


def as_in_first_pass(layer: nn.Module, mean: Tensor, var: Tensor, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Values that a step changes; in a recomputation by activation checkpointing those of the first pass.

    The first pass is recognized by its batch statistics, which its recomputation computes again; of calls with the same
    ones the latest that was not recomputed yet is taken, as backward passes go.

    Args:
        layer (nn.Module): Whose call this is.
        mean (Tensor): The statistics that the call normalizes by, any shape.
        var (Tensor): The same shape.
        values (tuple): What this call makes of running statistics.

    Returns:
        tuple: ``values``, or what the first pass gave.

    Raises:
        RuntimeError: This is a recomputation, and no pass had such statistics.
    """
    mean, var = mean.detach(), var.detach()
    if not recomputing():
        if may_be_repeated():
            _first_passes.setdefault(layer, deque(maxlen=_MOST_CALLS)).append([mean, var, values, False])
        return values
    calls = [call for call in _first_passes.get(layer, ()) if call[0].shape == mean.shape][::-1]
    if calls:
        scale = (var + 1e-12).rsqrt()
        off = [((mean - m).abs() * scale + (var - v).abs() * scale.square()).max() for m, v, *_ in calls]
        distances = torch.stack(off).tolist()
        nearest = min(range(len(calls)), key=lambda i: (distances[i], calls[i][3]))
        if distances[nearest] <= _TOLERANCE:
            calls[nearest][3] = True
            return calls[nearest][2]
    raise RuntimeError(
        f'{layer} is called in a backward pass, as activation checkpointing does, with a batch that none of its last '
        f'{len(calls)} checkpointed calls had: random operations before it must repeat themselves '
        f'(preserve_rng_state=True), and at most {_MOST_CALLS} calls may wait for their backward pass; or leave the '
        'layer out of the checkpointing'
    )
