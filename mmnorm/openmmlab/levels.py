"""Statistics per level from a config: the name PerLevel, and where the calls of such layers are counted."""

import functools

from mmengine.model import BaseModel

from mmnorm.norms import PerLevel, count_levels


class PerLevelFromConfig:
    """Builds a :class:`~mmnorm.norms.PerLevel` of any norm: ``dict(type='PerLevel', norm=dict(type='BN'), levels=5)``.

    Args:
        num_features (int): Number of channels.
        norm (dict): norm_cfg of the norm.
        levels (int): Number of levels.
        **arguments: More of the norm, where a config that is changed has them beside the type.
    """

    _abbr_ = PerLevel._abbr_

    def __new__(cls, num_features: int, norm: dict, levels: int, **arguments) -> PerLevel:  # type: ignore[misc]
        from mmcv.cnn import build_norm_layer

        return PerLevel.build(lambda: build_norm_layer(arguments | norm, num_features)[1], levels)


def counting_levels(build):
    """Have a registry's build function tell PerLevel layers where their calls are counted.

    That is in each forward of a dense head, which mmdet calls with all levels, and of a whole model.
    """

    @functools.wraps(build)
    def guarded(*args, **kwargs):
        built = build(*args, **kwargs)
        counts = isinstance(built, BaseModel) or any(kind.__name__ == 'BaseDenseHead' for kind in type(built).__mro__)
        if counts and any(isinstance(layer, PerLevel) for layer in built.modules()):
            count_levels(built)
        return built

    return guarded
