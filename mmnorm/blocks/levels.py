"""Statistics per level in a built network, such as a head that the levels of a feature pyramid share."""

import copy
from collections.abc import Callable, Iterable

from torch import nn

from mmnorm.norms import PerLevel, count_levels

from .layers import choose_norms, set_layer, type_name


def per_level(
    head: nn.Module,
    levels: int,
    where: Callable[[str, nn.Module], bool] | str | Iterable[str] | None = None,
) -> list[str]:
    """Give the norms of a head running statistics for each level that it is called with, in place.

    Each becomes a :class:`~mmnorm.norms.PerLevel` that starts with the statistics that it has, at every level: on a
    trained network :func:`~mmnorm.statistics.recollect` then makes them those of the levels. The calls are counted in
    each forward of the head, see :func:`~mmnorm.norms.count_levels`.

    Args:
        head (nn.Module): Whose forward calls each of the norms once for each level, in turn, or for fewer.
        levels (int): How many there are at most.
        where (callable, str, iterable[str] or None): Which norms, as in :func:`~mmnorm.blocks.replace_norms`. Default
            None: all that have running statistics, BN's and ours.

    Returns:
        list[str]: Names of these norms.

    Raises:
        ValueError: There is no such norm, or one has no running statistics.
    """
    inner = {level for layer in head.modules() if isinstance(layer, PerLevel) for level in layer}
    chosen = choose_norms(head, where, lambda norm: getattr(norm, 'running_mean', None) is not None)
    chosen = {name: norm for name, norm in chosen.items() if norm not in inner}
    if not chosen:
        raise ValueError(f'per_level: {type(head).__name__} has no norm with running statistics that it could be for')
    if '' in chosen:
        raise ValueError(
            f'per_level: the head is itself a {type_name(head)} layer, which cannot be replaced in place: give the '
            'module that calls it'
        )
    layers = {}
    for name, norm in chosen.items():
        copies = iter([norm])  # its parameters stay in the optimizer that has them
        layers[name] = PerLevel.build(lambda: next(copies, None) or copy.deepcopy(norm), levels)  # noqa: B023
        layers[name].training = head.training
    for name, norm in chosen.items():
        set_layer(head, norm, layers[name])
    count_levels(head)
    return list(chosen)
