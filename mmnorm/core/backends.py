"""Which backend runs the passes over elements: on CUDA cards the Triton kernels, ATen for everything else."""

import functools
import importlib
import inspect
import itertools
import os
import warnings
from collections.abc import Callable
from math import prod
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

_OLDEST = 3, 6  # of Triton
_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
_TRACERS = [getattr(torch._C._TorchDispatchModeKey, name) for name in ('FAKE', 'PROXY', 'FUNCTIONAL')]

_enabled = os.environ.get('MMNORM_TRITON', '1') != '0'
_checked: set[tuple] = set()

_Function = TypeVar('_Function', bound=Callable)


def use_triton(enabled: bool) -> None:
    """Switch the Triton kernels on, as they are to begin with, or off, as MMNORM_TRITON=0 in the environment does.

    Args:
        enabled (bool): Whether normalizers on CUDA cards run by them in float32, float16 and bfloat16. All else, and
            everything with False, runs by ATen, with the same results but for rounding.
    """
    global _enabled
    _enabled = enabled


def spelled_out() -> bool:
    """Whether a compiler, an exporter or torch.func reads the operations, which must be plain ones for that."""
    return torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._are_functorch_transforms_active()


def or_kernel(x_at: int = 0, module: str = 'kernels') -> Callable[[_Function], _Function]:
    """Run, in the place of a function on ATen, that of the same name in the module that is for the tensor.

    Args:
        x_at (int): Which of the arguments is x, (N, C, *S), or a plane, (N, C).
        module (str): Of the kernels. It has a function ``variant(x, args)`` that tells apart what is compiled, and
            checked, by itself; None is what there is no kernel for. Its other functions take the variant first.
    """

    def decorate(aten):
        name = aten.__name__

        @functools.wraps(aten)
        def run(*args):
            kernels, variant = kernels_for(aten, module, args[x_at], args)
            return aten(*args) if variant is None else getattr(kernels, name)(variant, *args)

        return run

    return decorate


def kernels_for(aten: Callable, module: str, x: Tensor, args: tuple) -> tuple[ModuleType | None, Any]:
    """The module whose function is to be used in the place of ``aten(*args)``, with the variant, or None: ATen.

    Raises:
        RuntimeError: This card gives other results than ATen; that is looked at before the first use.
    """
    if not (_has_card(x) and _enabled and x.dtype in _DTYPES and x.numel()) or _is_traced(x):
        return None, None
    kernels = _load(module)
    variant = None if kernels is None else kernels.variant(x, args)
    if variant is None:
        return None, None
    key = aten.__name__, x.get_device(), x.dtype, variant
    if key not in _checked:
        if _is_capturing(x) or not _works(kernels, aten, x, args, variant):
            return None, None
        _checked.add(key)
    return kernels, variant


def _has_card(x):
    return x.is_cuda and torch.version.hip is None


def _is_capturing(x):
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _is_traced(x):
    """Whether operations on x are read or changed by others, who would not see a kernel."""
    if spelled_out() or type(x) not in (Tensor, nn.Parameter):
        return True
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    return torch._C._len_torch_dispatch_stack() > 0 and any(torch._C._get_dispatch_mode(key) for key in _TRACERS)


@functools.cache
def _load(module='kernels'):
    try:
        import triton

        if tuple(int(part) for part in triton.__version__.split('.')[:2]) < _OLDEST:
            raise ImportError(f'Triton {triton.__version__} is older than {".".join(map(str, _OLDEST))}')
        return importlib.import_module(f'{__package__}.{module}')
    except Exception as error:  # an installation that is broken raises about anything
        _give_up(error)
        return None


def _give_up(error):
    use_triton(False)
    warnings.warn(
        'mmnorm normalizes by ATen on this GPU, with the same results, but slower: its Triton kernels cannot be used. '
        f'{type(error).__name__}: {error}. MMNORM_TRITON=0 in the environment asks for that without this warning',
        stacklevel=2,
    )


@torch.no_grad()
def _works(kernels, aten, x, args, variant):
    """Whether a kernel can be compiled for such arguments; an error if it then computes something else than ATen."""
    name = aten.__name__
    try:
        for _ in range(2):  # first by Triton's own dispatch, then as all later calls are launched
            ours = _made_up(aten, x, args, variant)
            found = getattr(kernels, name)(variant, *ours)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no C compiler, no folder for the cache, a card that the compiler does not know ...
        _give_up(error)
        return False
    exact = tree_map_only(Tensor, torch.Tensor.double, _made_up(aten, x, args, variant))
    pairs = [(found, aten(*exact))]
    if x.dim() == 2:  # running statistics, which are changed in place
        pairs.append((ours, exact))
    for given, wanted in zip(*(tree_leaves(side) for side in zip(*pairs))):
        if not (torch.is_tensor(given) and torch.is_tensor(wanted)):
            continue
        off, largest = (given.double() - wanted).abs(), wanted.abs().max()
        allowed = 1e-4 * largest + (torch.finfo(given.dtype).eps * wanted.abs() if given.is_floating_point() else 0)
        if not bool((off <= allowed).all()):  # said so that a NaN does not pass
            card = torch.cuda.get_device_name(x.device) if x.is_cuda else x.device
            raise RuntimeError(
                f'The Triton kernel {name!r} of mmnorm computes something else than ATen on {card}, by '
                f'{float(off.max()):.3g} where values are up to {float(largest):.3g} ({x.dtype}, {variant}; '
                f'PyTorch {torch.__version__}, Triton {kernels.triton.__version__}). Nothing was normalized by it. Set '
                'MMNORM_TRITON=0 in the environment, or call mmnorm.core.use_triton(False), to go on by ATen, and '
                'please report this message'
            )
    return True


def _made_up(aten, x, args, variant):
    """Arguments to check a kernel with: others of the same shapes, and in the place of a larger tensor a smaller one.

    Nothing of the arguments, which may hold anything, and nothing random, which would move the generator on.
    """
    steps = itertools.count(1)

    def other(value):
        if torch.is_tensor(value):
            if not value.is_floating_point():
                return torch.full_like(value, 3)
            return _waves(1 / next(steps), value.shape, value.device).abs().add(0.1).to(value.dtype)
        return _no_function if callable(value) else value

    values = _values(x, variant) if x.dim() > 2 else {}
    parameters = zip(inspect.signature(aten).parameters, args)
    return [values[name] if name in values else tree_map(other, arg) for name, arg in parameters]


def _no_function(*_, **__):
    """In the place of one that a check must not call."""


def _waves(step, shape, device):
    numbers = torch.arange(prod(shape), dtype=torch.float64, device=device)
    return (numbers * step).sin().add(0.5).float().view(shape)


def _values(x, tiles):
    """By the name of an argument: a tensor that is cut as x is, and planes for it."""
    from . import elements

    samples, channels, length = min(len(x), 2), x.shape[1], prod(x.shape[2:])
    channels, length = (min(size, enough + size % 16) for size, enough in zip((channels, length), tiles.enough))
    sizes = samples, channels, length, *[1] * (x.dim() - 3)

    def waves(step, *shape):
        return _waves(step, shape, x.device)

    def elementwise(step):
        dense = waves(step, *sizes).to(x.dtype).contiguous(memory_format=elements.memory_format(x))
        first = 0 if tiles.unit > 1 else 1  # a pointer that is no more aligned than that of x
        return dense.new_empty(dense.numel() + first).as_strided(dense.shape, dense.stride(), first).copy_(dense)

    sample = elementwise(2.3)
    plane, positions = (samples, channels), (samples, 1, *sizes[2:])
    return dict(
        x=sample,
        grad=elementwise(1.7),
        moments=elements.take_moments(sample.double()),
        own_mean=waves(1.1, *plane),
        mean=waves(1.3, samples, 1),
        scale=waves(0.9, channels).expand(plane),
        shift=waves(0.7, *plane),
        weight=waves(0.9, channels),
        bias=waves(0.7, channels),
        eps=1e-3,
        position_mean=waves(1.3, *positions),
        position_rstd=waves(0.3, *positions),
        dmean=waves(1.9, 1, channels).expand(plane),
        dvar=waves(0.3, samples, 1),
    )
