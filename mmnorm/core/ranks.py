"""The ranks that a layer takes its statistics over: what they exchange, and how a user learns that one went astray.

Each synchronized layer has one collective forward and one backward, which every rank must reach equally often and in
the same order. A rank that does not (it skipped a layer, a backward pass or a step, or went on after an exception)
would leave the others waiting, or mix its statistics with those of another layer or step. So each message carries the
place that its rank is at, and an error of the backend is told with the layer, the step and the rank. Two limits: gloo
aborts a rank that receives a longer message than it expects, and then the other ranks tell of it; compiled code
neither tells its place nor looks at others'.
"""

import math
import weakref
import zlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

# Forward, messages are float64, in which a place is exact: the layer's number, the type of its statistics, and the step
_NUMBERS, _STEPS = 2**24, 2**24
# Backward they have the type of the gradients, and places are so small that the sum over ranks is exact in float32
_PLACES_BACKWARD = 2**12
#: On a GPU, where looking at the others' places waits for the device, only so many calls of a layer apart.
CALLS_BETWEEN_CHECKS = 64
_ADVICE = (
    'Every rank must run every Sync layer equally often and in the same order, forward and backward: look for a rank '
    'that skips a layer, a backward pass or a step, goes on after an exception, or has ended.'
)
# the name until torch 2.12, which is deprecated since
_all_gather = getattr(distributed, 'all_gather_single', None) or distributed.all_gather_into_tensor

_tell_step: Callable[[], int | None] = lambda: None  # noqa: E731
_labels: dict[int, str] = {}  # of layers, by number
_peers: 'weakref.WeakKeyDictionary[nn.Module, Peers]' = weakref.WeakKeyDictionary()
_neighbors: 'weakref.WeakKeyDictionary[Any, dict[int, Any]]' = weakref.WeakKeyDictionary()


def set_step(step: int | Callable[[], int | None]) -> None:
    """Tell the Sync layers which step the training is at, so that they notice ranks that are at different ones.

    Under mmengine's Runner they know. In a loop of your own call it at the start of each step, on every rank.

    Args:
        step (int or callable): The number of the step, or what returns it (None: unknown).
    """
    global _tell_step
    _tell_step = step if callable(step) else lambda: step


@torch.compiler.assume_constant_result
def neighbors(size: int) -> Any:
    """The process group of this rank's run of so many ranks; made at first, when all ranks must ask for it.

    Args:
        size (int): Divides the number of ranks; ranks 0 to ``size - 1`` are the first group.

    Raises:
        ValueError: It does not.
    """
    world = distributed.group.WORLD
    made = _neighbors.setdefault(world, {})
    if size not in made:
        if distributed.get_world_size() % size:
            raise ValueError(f'group_size={size} does not divide the {distributed.get_world_size()} ranks')
        made[size] = distributed.new_subgroups(size, timeout=_timeout(world))[0]
    return made[size]


def _timeout(group) -> timedelta:
    """How long collectives of a group wait; torch gives a new group its default, not what the others have."""
    return group._get_backend(group._device_types[0]).options._timeout


def parts_of(messages: Tensor) -> tuple[Tensor, ...]:
    """The parts of what ranks tell each other in a forward pass, float64, as views.

    Args:
        messages (Tensor): (2 + 3 G,), or those of several ranks, (ranks, 2 + 3 G), for G statistics.

    Returns:
        tuple[Tensor, ...]: The place of the rank and the number of its samples, (1,) each; its means and biased
        variances, and the number of elements behind each of them, (G,) each.
    """
    # the place in front, where it is found even in a message that is shorter than ours
    size = (messages.shape[-1] - 2) // 3
    return messages.split([1, 1, size, size, size], -1)


def gather(own: Tensor, place: float, group: Any, peers: 'Peers | None') -> Tensor:
    """What every rank of a group has to tell; one collective.

    Args:
        own (Tensor): What this rank has; :func:`parts_of` tells its parts.
        place (float): That of this rank, which :meth:`Peers.enter` gives; NaN in compiled code.
        group (ProcessGroup): The ranks.
        peers (Peers or None): What this rank knows of the others; None in compiled code.

    Returns:
        Tensor: (ranks, numbers).

    Raises:
        RuntimeError: The ranks are not in the same layer and step, or not of the same type, or the collective failed.
    """
    ranks = own.new_empty(distributed.get_world_size(group), own.numel())
    if peers:
        peers.meet(_all_gather, ranks.view(-1), own)
        peers.compare(ranks[:, 0], place)
    else:
        distributed.all_gather_into_tensor(ranks.view(-1), own, group=group)
    return ranks


def add(own: Tensor, place: float, group: Any, peers: 'Peers | None', call: int) -> Tensor:
    """Sum up over the ranks of a group, in a backward pass; one collective.

    Args:
        own (Tensor): This rank's place and behind it what is summed; the sum is written into it.
        place (float): That of this rank, which :meth:`Peers.place_in` gives; NaN in compiled code.
        group (ProcessGroup): The ranks.
        peers (Peers or None): What this rank knows of the others; None in compiled code.
        call (int): The number of the forward pass that this one belongs to.

    Returns:
        Tensor: The sum, without the place.

    Raises:
        RuntimeError: The ranks are not in the same layer and call, or the collective failed.
    """
    if peers:
        peers.meet(distributed.all_reduce, own, backward=call)
        peers.compare_sum(own[0], place, call)
    else:
        distributed.all_reduce(own, group=group)
    return own[1:]


def cut(values: Tensor, planes: list[Tensor]) -> list[Tensor]:
    """Values in a row, (..., K), as tensors (..., *shape) of the shapes of some planes."""
    parts = values.split([plane.numel() for plane in planes], -1)
    return [part.reshape(*values.shape[:-1], *plane.shape) for part, plane in zip(parts, planes)]


def peers_of(layer: nn.Module, group: Any, name: Callable[[nn.Module], str]) -> 'Peers':
    """The ranks that a layer pools over, with what they know of each other.

    Args:
        layer (nn.Module): The layer.
        group (ProcessGroup): The ranks.
        name (callable): Says what messages call it; asked once.
    """
    peers = _peers.get(layer)
    if peers is None or peers.group is not group:
        peers = _peers[layer] = Peers(name(layer), group)
    return peers


class Peers:
    """The ranks over which one layer takes its statistics.

    Args:
        layer (str): What the layer is called in messages, the same on all ranks.
        group (ProcessGroup): Of these ranks.

    Attributes:
        number: Tells layers apart, by their names.
        calls: Forward passes so far.
    """

    def __init__(self, layer: str, group: Any) -> None:
        self.layer, self.group = layer, group
        self.number, self.calls = zlib.crc32(layer.encode()) % _NUMBERS, 0
        _labels[self.number] = layer

    def enter(self, dtype: torch.dtype) -> int:
        """Count a forward pass with statistics of a type, and return the place that this rank is at."""
        self.calls += 1
        return ((_tell_step() or 0) % _STEPS * 2 + (dtype == torch.float64)) * _NUMBERS + self.number

    def place_in(self, call: int) -> int:
        """The place that this rank is at in the backward pass of a call."""
        return (self.number + 97 * call) % _PLACES_BACKWARD

    def meet(self, collective: Callable, *tensors: Tensor, backward: int | None = None) -> None:
        """Run a collective, forward or in the backward pass of a call; RuntimeError, with the place, if it fails."""
        try:
            collective(*tensors, group=self.group)
        except RuntimeError as error:
            raise RuntimeError(
                f'{self._here(backward)}: the ranks did not meet here: {error}\n{_ADVICE} A rank whose statistics '
                'have another size is ended by the backend. How long the others are waited for is the timeout of the '
                'process group.'
            ) from error

    def compare(self, places: Tensor, own: float) -> None:
        """RuntimeError if ranks, whose places these are, are not at this rank's own one."""
        if not self._looks(places, self.calls):
            return
        others = places.tolist()
        if any(other != own and not math.isnan(other) for other in others):
            found: dict[str, list[str]] = {}
            for rank, other in enumerate(others):
                found.setdefault(self._tell(other, own), []).append(str(self._global(rank)))
            told = '; '.join(f'{where} (rank {", ".join(ranks)})' for where, ranks in found.items())
            raise RuntimeError(f'{self._here()}: the ranks have parted ways. They are in {told}. {_ADVICE}')

    def compare_sum(self, total: Tensor, own: float, call: int) -> None:
        """RuntimeError if the sum of all ranks' places in a backward pass is not that of this rank's own one."""
        # NaN, of compiled code, is on neither side
        if self._looks(total, call) and abs(total.item() - own * distributed.get_world_size(self.group)) > 0:
            raise RuntimeError(
                f'{self._here(call)}: another rank is in the backward pass of another layer, or of another use of this '
                f'one. {_ADVICE}'
            )

    def _looks(self, places, call):
        if places.is_cpu:
            return True
        return call % CALLS_BETWEEN_CHECKS == 0 and not torch.cuda.is_current_stream_capturing()

    def _here(self, backward=None):
        passed = f'forward pass {self.calls}' if backward is None else f'backward pass {backward}'
        step = _tell_step()
        at = '' if step is None else f', at step {step}'
        return f'{self.layer} on rank {distributed.get_rank()}, {passed}{at}'

    def _tell(self, place, own):
        """Say in words where a rank is that is at a place."""
        if math.isnan(place):
            return 'compiled code'
        (rest, number), (own_rest, own_number) = divmod(place, _NUMBERS), divmod(own, _NUMBERS)
        (step, is_double), (own_step, own_is_double) = divmod(rest, 2), divmod(own_rest, 2)
        if number % 1 or not 0 <= step < _STEPS:  # the remains of a shorter message of another size
            return 'a layer of another size'
        layer = 'this layer' if number == own_number else _labels.get(int(number), 'a layer that is unknown here')
        in_type = '' if is_double == own_is_double else f' with statistics in {"float64" if is_double else "float32"}'
        at_step = '' if step == own_step else f' at step {int(step)}'
        return f'{layer}{in_type}{at_step}'

    def _global(self, rank):
        return distributed.get_global_rank(self.group, rank)
