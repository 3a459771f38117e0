"""Norms whose statistics are those of several steps of an optimizer: what counts the steps, and what they leave."""

from collections import deque
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn, optim
from torch.utils.hooks import RemovableHandle

from .base import PlaneNorm
from .checks import called, warn_once
from .passes import differentiated

_histories: WeakKeyDictionary = WeakKeyDictionary()  # layer -> StepHistory: no copy and no file of a layer has one


class SteppedNorm(PlaneNorm):
    """Base of the norms that use batches of the steps before: those that the optimizer has taken, not forward passes.

    Iterations that accumulate gradients, and steps that mixed precision leaves out, are no steps; of the batches of one
    step the last is kept. :func:`count_steps` counts them, in an mmengine training
    :class:`~mmnorm.openmmlab.steps_hook.CountStepsHook`, which comes by itself. The count is in the state dict, the
    batches are not: a resumed training goes on with the count and collects them anew.
    """

    control_buffers = dict(steps=0)
    steps: Tensor
    #: Whether something counts the optimizer's steps.
    counted = False
    _taken = 0  # the steps, in Python: a GPU would be waited for

    #: How many steps before this one count.
    length: int

    def put_controls(self, device=None, dtype=None):
        super().put_controls(device)  # an integer, whatever the type of the parameters

    def control_shape(self, name):
        return ()

    def count_step(self) -> None:
        """Note that the optimizer has taken a step."""
        self._taken += 1
        self.steps += 1

    def uses_steps(self, x: Tensor) -> bool:
        """Whether this call is of a training whose steps are counted; a warning, if they are not."""
        if not (self.training and differentiated() and self.running_mean is not None and x.numel()):
            return False
        if not self.counted and not torch.compiler.is_compiling():
            warn_once(
                f'{type(self).__name__}: nothing counts the steps of the optimizer, so each batch is normalized by '
                'itself: call mmnorm.count_steps(model, optimizer) before the training; a Runner of mmengine does so '
                'where mmnorm is imported.'
            )
        return self.counted

    @property
    def history(self) -> 'StepHistory':
        """What the layer's last steps left."""
        return _histories.setdefault(self, StepHistory(self.length))

    def begin_call(self) -> list:
        """What the steps before this one left, the latest last; nothing if the layer is called again before a backward
        pass, as in a head that levels share, whose levels are not to be mixed.
        """
        past = self.history.begin(self._taken)
        if past is None:
            name = called(self)
            warn_once(
                f'{name} is called again before the backward pass of its last call, as a layer is that the levels of a '
                'feature pyramid share. Such calls are normalized by themselves, without the batches of earlier steps; '
                'per_level in its norm_cfg keeps those of each level.',
                key=f'shared {name}',
            )
        return past or []

    def forget(self) -> None:
        """Drop what the steps before left."""
        _histories.pop(self, None)

    def reset_parameters(self):
        super().reset_parameters()
        self._taken = 0
        self.forget()

    def _apply(self, *args, **kwargs):
        self.forget()  # of another device or type
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self._taken = 0 if self.steps.is_meta else int(self.steps)
        self.forget()


class StepHistory:
    """What a layer's calls leave, of each step one.

    Args:
        length (int): Number of steps before the current one.
    """

    def __init__(self, length: int) -> None:
        self._past: deque = deque(maxlen=length)
        self._step = -1
        self._kept: Any = None  # in this step
        self._waiting = self._shared = False

    def begin(self, step: int) -> list | None:
        """Begin a call, in a step of this number: what the steps before left; None if calls overlap in the step."""
        if step != self._step:
            if self._kept is not None:
                self._past.append(self._kept)
            self._step, self._kept, self._shared = step, None, False
        elif self._waiting:
            self._shared, self._kept = True, None
            self._past.clear()
        self._waiting = True
        return None if self._shared else list(self._past)

    def keep(self, value: Any, result: Tensor) -> None:
        """Keep what a call leaves, in the place of what an earlier one of the step did.

        Args:
            value (Any): For the next steps.
            result (Tensor): Whose gradient ends the call.
        """
        if not self._shared:
            self._kept = value
        if result.requires_grad:
            result.register_hook(self._end)

    def _end(self, gradient):
        self._waiting = False


def count_steps(model: nn.Module, optimizer: optim.Optimizer) -> RemovableHandle:
    """Count the steps that an optimizer takes, for the norms of a network that use those before: CBN and MABN.

    Args:
        model (nn.Module): A network or a layer.
        optimizer (Optimizer): What trains it.

    Returns:
        RemovableHandle: Its ``remove()`` ends the counting.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, SteppedNorm) and not layer.frozen]
    for layer in layers:
        layer.counted = True

    def count(*_):
        for layer in layers:
            layer.count_step()

    return optimizer.register_step_post_hook(count)
