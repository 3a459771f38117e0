"""What the arguments of the norms may be: a constructor says it beside its defaults, and one place checks and words it.

@checked(r_max=number(1), warmup=integer(0))
def __init__(self, num_features, *args, r_max=2.0, warmup=5000, **kwargs): ...
"""

import functools
import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import distributed

from .checks import warn_once

_Init = TypeVar('_Init', bound=Callable)
#: Arguments of stock norms that say nothing to ours, and whose they are: they stay in a norm_cfg whose type is changed.
STOCK_ARGUMENTS = dict(
    num_groups='GN',
    process_group='SyncBN',
    group='MMSyncBN',
    stats_mode='MMSyncBN',
    elementwise_affine='LN, and called affine here',
)


class Allowed:
    """Values that an argument may have.

    Args:
        text (str): What they are, for "must be ...".
        is_kind (callable): Whether a value is of the right type.
        fits (callable): Whether one of the right type is within range.
        convert (callable): Makes Python's own of it, such as of NumPy's numbers.
    """

    def __init__(
        self,
        text: str,
        is_kind: Callable[[Any], bool],
        fits: Callable[[Any], bool] = lambda value: True,
        convert: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        self.text, self.is_kind, self.fits, self.convert = text, is_kind, fits, convert

    def __or__(self, other: 'Allowed') -> 'Allowed':
        def either(value):
            return self if self.is_kind(value) else other

        return Allowed(
            f'{self.text} or {other.text}',
            lambda value: either(value).is_kind(value),
            lambda value: either(value).fits(value),
            lambda value: either(value).convert(value),
        )

    def check(self, where: str, argument: str, value: Any, hint: str = '') -> Any:
        """The value as Python's own; a TypeError or ValueError names layer and argument if it is not allowed."""
        problem = f'{where}: {argument} must be {self.text}, got {value!r}{hint}'
        if not self.is_kind(value):
            raise TypeError(problem)
        if not self.fits(value):
            raise ValueError(problem)
        return self.convert(value)


def number(least: float = -math.inf, most: float = math.inf, above: float = -math.inf) -> Allowed:
    """Finite numbers from ``least`` to ``most``, or ``above`` one."""
    limits = [
        f'{word} {limit:g}'
        for word, limit in (('of at least', least), ('above', above), ('and at most', most))
        if math.isfinite(limit)
    ]
    return Allowed(
        ' '.join(['a finite number', *limits]),
        lambda value: isinstance(value, numbers.Real) and not isinstance(value, bool),
        lambda value: math.isfinite(value) and least <= value <= most and value > above,
        lambda value: value if isinstance(value, int) else float(value),
    )


def integer(least: int) -> Allowed:
    """Integers from ``least`` on."""
    return Allowed(
        {0: 'an integer of at least 0', 1: 'a positive integer'}[least],
        lambda value: isinstance(value, numbers.Integral) and not isinstance(value, bool),
        lambda value: value >= least,
        int,
    )


def one_of(*choices: str) -> Allowed:
    """One of some words."""
    text = repr(choices[0]) if len(choices) == 1 else f'one of {", ".join(map(repr, choices))}'
    return Allowed(text, lambda value: isinstance(value, str), lambda value: value in choices)


def _is_device(value):
    try:
        return isinstance(value, (str, torch.device)) and bool(torch.device(value))
    except RuntimeError:  # a string that names none
        return False


FLAG = Allowed('True or False', lambda value: isinstance(value, bool))
NONE = Allowed('None', lambda value: value is None)
DEVICE = Allowed('a device', _is_device)
DTYPE = Allowed('a floating point type', lambda v: isinstance(v, torch.dtype), lambda v: v.is_floating_point)

# a rank outside of the group has got NON_GROUP_MEMBER, and takes its own statistics, as with torch's SyncBN
GROUP = Allowed(
    'a group as torch.distributed.new_group makes it (in a config use group_size, the number of ranks of each)',
    lambda value: isinstance(value, distributed.ProcessGroup) or value is distributed.GroupMember.NON_GROUP_MEMBER,
)


def checked(**allowed: Allowed) -> Callable[[_Init], _Init]:
    """Decorate a norm's constructor: its arguments are what is stated here, and so is its num_features.

    Raises:
        TypeError: Where the class is defined: an argument of the constructor is not stated. Where a layer is built: an
            argument is of a wrong type, or missing; a ValueError, if it is of the right one and out of range.
    """

    def decorate(init):
        signature = inspect.signature(init)
        variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
        own = [name for name, p in signature.parameters.items() if name != 'self' and p.kind not in variable]
        stated = dict(num_features=integer(1)) | allowed
        if set(own) != set(stated):
            raise TypeError(f'{init.__qualname__} has the arguments {own}, but {list(stated)} are stated')

        @functools.wraps(init)
        def checking(self, *args, **kwargs):
            try:
                bound = signature.bind(self, *args, **kwargs)
            except TypeError as error:
                raise TypeError(f'{type(self).__name__}: {error}; {_order(type(self))}') from None
            where = f'{type(self).__name__}({bound.arguments["num_features"]})'
            for name in own:
                if name in bound.arguments:
                    hint = '' if name in kwargs or name == 'num_features' else f'; {_order(type(self))}'
                    bound.arguments[name] = stated[name].check(where, name, bound.arguments[name], hint)
            init(*bound.args, **bound.kwargs)

        vars(checking)['stated'] = own
        return checking

    return decorate


def known_arguments(norm: type) -> list[str]:
    """What a norm's constructor takes, BN's arguments first and in BN's order."""
    inits = [vars(cls)['__init__'] for cls in reversed(norm.__mro__) if '__init__' in vars(cls)]
    return list(dict.fromkeys(name for init in inits for name in getattr(init, 'stated', ())))


def _order(norm):
    return f"BN's arguments come in BN's order, the others by keyword: {', '.join(known_arguments(norm))}"


def note_stock_arguments(where: str, norm: type, arguments: dict[str, Any]) -> None:
    """Accept arguments of stock norms that say nothing to one of ours, and say so once; refuse any other.

    Args:
        where (str): Names the layer in errors.
        norm (type): Its class.
        arguments (dict): What its constructor does not know.
    """
    for name, value in arguments.items():
        if name not in STOCK_ARGUMENTS:
            raise TypeError(f'{where}: unknown argument {name}={value!r}; {_order(norm)}')
        if name == 'elementwise_affine' and value is not True:
            raise ValueError(f'{where}: {name}={value!r} is of LN; write affine={value!r}')
        if value is not None:
            warn_once(
                f'{norm.__name__} has no {name}, which is of {STOCK_ARGUMENTS[name]}: it has no effect; leave it out.'
            )


def note_no_effect(norm: type, argument: str, why: str) -> None:
    """Say once that an argument that was given has no effect."""
    warn_once(f'{norm.__name__}: {argument} has no effect, since {why}; leave it out.')
