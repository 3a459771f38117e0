"""Running statistics per level, for layers that are called several times in a pass: heads shared by FPN levels.

Training normalizes each call of a shared layer by itself, evaluation all of them by one set of running statistics, the
mixture of all levels. :class:`PerLevel` keeps a set for every call in turn.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mmnorm.core import spelled_out

from .arguments import integer
from .passes import recomputing

#: Passes whose calls are remembered, to be recognized when activation checkpointing makes them again.
REMEMBERED_PASSES = 16


class PerLevel(nn.ModuleList):
    """One norm for each call in turn: statistics of their own, one gamma, beta and set of control parameters.

    The k-th call within a pass goes to the k-th norm. A pass is one forward of the module that was given to
    :func:`count_levels`, such as a detector's head; with the OpenMMLab registries that is done where a model is built.
    Fewer calls are fine. A call that activation checkpointing makes again is recognized by its input: its shape and,
    where levels share one, some values.

    In the state dict parameters are those of norm 0 (``0.weight``), buffers those of each (``0.running_mean``,
    ``1.running_mean``). A checkpoint of one such norm (``weight``, ``running_mean``) loads into all levels.

    Args:
        norms (iterable[nn.Module]): Norms of one type with running statistics, one for each level. They get the
            parameters of the first.

    Shape:
        Those of the norms.

    Raises:
        ValueError: A norm is without running statistics; in forward, the call is outside of a counted
            pass, or there are more calls than levels; in loading, the checkpoint has another number of levels.
    """

    _abbr_ = 'bn'

    def __init__(self, norms: Iterable[nn.Module]) -> None:
        super().__init__(norms)
        for norm in self:
            if getattr(norm, 'running_mean', None) is None:
                raise ValueError(
                    f'PerLevel keeps running statistics for each level, and {type(norm).__name__} has none here: use '
                    'it without'
                )
        self._name = ''  # in the module that counts
        self._position: int | None = None  # of the next call; None outside of a pass
        self._calls: deque[tuple[int, torch.Size, Tensor]] = deque(maxlen=REMEMBERED_PASSES * len(self))
        self._register_state_dict_hook(_leave_out_shared)
        self.register_load_state_dict_post_hook(_share_loaded)

    @classmethod
    def build(cls, norm: Callable[[], nn.Module], levels: int) -> 'PerLevel':
        """Make one of norms that a function builds.

        Args:
            norm (callable): ``() -> nn.Module``.
            levels (int): Number of levels, at least 1.
        """
        return cls(norm() for _ in range(integer(1).check(cls.__name__, 'levels', levels)))

    def forward(self, x: Tensor) -> Tensor:
        return self[self._recognized(x) if recomputing() else self._counted(x)](x)

    def _counted(self, x):
        level = self._position
        if level is None:
            raise ValueError(
                f'{self._described()} is called outside of a pass in which its calls are counted: give the module '
                'whose forward calls it once for each level to mmnorm.count_levels(head), and call that module itself, '
                'not its forward()'
            )
        if level >= len(self):
            raise ValueError(
                f'{self._described()} is called more than {len(self)} times in a pass: it has statistics for '
                f'{len(self)} levels; set as many levels as there are calls'
            )
        self._position = level + 1
        if (self.training or torch.is_grad_enabled()) and x.numel() and not spelled_out():
            self._calls.append((level, x.shape, _some_values(x)))
        return level

    def _recognized(self, x):
        """The level of a call that is made again in the backward pass."""
        if not x.numel():
            return 0  # whose statistics it neither changes nor needs
        alike = [(level, values) for level, shape, values in self._calls if shape == x.shape]
        levels = {level for level, _ in alike}
        if len(levels) > 1:
            own = _some_values(x).cpu().double()
            if not own.isfinite().all():
                return min(levels)  # nor is the result, by any of them
            distances = [(own - values.cpu().double()).abs().sum().nan_to_num() for _, values in alike]
            levels = {level for (level, _), distance in zip(alike, distances) if distance == min(distances)}
        if len(levels) != 1:
            raise ValueError(
                f'{self._described()} is called in the backward pass, as activation checkpointing does, with an input '
                f'of shape {tuple(x.shape)} that {"several" if levels else "none"} of its levels had: leave '
                'it out of the checkpointing'
            )
        return min(levels)

    def _described(self):
        return f'{self._name or "a layer"} (PerLevel of {len(self)} {type(self[0]).__name__})'

    # one set of parameters, whatever is done to the norms

    def share(self) -> None:
        """Give all levels the parameters of the first."""
        first, *others = self._modules.values()
        for other in others:
            for name, parameter in first._parameters.items():
                if name in other._parameters:
                    other._parameters[name] = parameter

    def add_module(self, name: str, module: nn.Module | None) -> None:
        super().add_module(name, module)
        self.share()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, nn.Module):  # a level that was converted or replaced
            self.share()

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.share()  # to_empty makes new parameters
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args):
        levels = levels_in(state_dict, prefix)
        if levels and levels != set(self._modules):
            raise ValueError(
                f'{prefix.rstrip(".") or self._described()} has statistics for {len(self)} levels, the checkpoint for '
                f'{len(levels)}: set levels (per_level) to {len(levels)}'
            )
        for key in [key for key in state_dict if key.startswith(prefix) and '.' not in key[len(prefix) :]]:
            value, name = state_dict.pop(key), key[len(prefix) :]  # of one norm, for all levels
            state_dict.update({f'{prefix}{level}.{name}': value for level in range(len(self))})
        for key in [key for key in state_dict if key.startswith(f'{prefix}0.')]:
            others = [f'{prefix}{level}.{key[len(prefix) + 2 :]}' for level in range(1, len(self))]
            if not any(other in state_dict for other in others):
                state_dict.update(dict.fromkeys(others, state_dict[key]))  # shared
        super()._load_from_state_dict(state_dict, prefix, *args)


def count_levels(module: nn.Module) -> None:
    """Have each forward of a module be a pass, in which the calls of the :class:`PerLevel` layers in it are counted.

    Args:
        module (nn.Module): What calls its layers once for each level, such as a head over a feature pyramid.

    Raises:
        ValueError: It has no such layer.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, PerLevel)}
    if not layers:
        raise ValueError(f'count_levels: {type(module).__name__} has no layer with statistics per level')
    for name, layer in layers.items():
        layer._name = name
    if _start not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_start, prepend=True)
        module.register_forward_hook(_end, always_call=True)


def levels_in(state_dict: dict[str, Tensor], prefix: str) -> set[str]:
    """The levels that a state dict has a layer's statistics for, as their numbers stand in its keys."""
    inner = (key[len(prefix) :].partition('.') for key in state_dict if key.startswith(prefix))
    return {level for level, dot, _ in inner if dot and level.isdigit()}


def refuse_levels(layer: nn.Module, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Raise a ValueError if a state dict has statistics per level of a layer that keeps one set."""
    levels = levels_in(state_dict, prefix)
    if levels:
        raise ValueError(
            f'{prefix.rstrip(".") or type(layer).__name__}: the checkpoint has running statistics for {len(levels)} '
            f'levels, the layer keeps one set: build it with per_level={len(levels)}'
        )


def _start(module, args):
    _set_position(module, 0)


def _end(module, args, output):
    _set_position(module, None)


def _set_position(module, position):
    if not recomputing():
        for layer in module.modules():
            if isinstance(layer, PerLevel):
                layer._position = position


def _some_values(x):
    """A copy of a value of each channel, (C,)."""
    index = (0, slice(None), *(size // 2 for size in x.shape[2:]))
    return x.detach()[index].clone()


def _leave_out_shared(layer, state_dict, prefix, metadata):
    # averages of weights that go over a state dict would take each of them several times
    for level in range(1, len(layer)):
        for name in layer[0]._parameters:
            state_dict.pop(f'{prefix}{level}.{name}', None)


def _share_loaded(layer, keys):
    layer.share()  # load_state_dict(assign=True) gives each level one of its own
