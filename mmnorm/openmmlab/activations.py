"""What is said of a ReLU behind a norm that has a threshold in its place (FRN with ``tlu``)."""

import functools
import weakref

from torch import nn

from mmnorm.blocks import relus_behind_tlu
from mmnorm.norms.checks import warn_once

_told: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def noticing_relus(build):
    """Have a registry's build function say where hosts put a ReLU behind FRN with ``tlu``: it undoes thresholds < 0."""

    @functools.wraps(build)
    def guarded(*args, **kwargs):
        built = build(*args, **kwargs)
        if isinstance(built, nn.Module):
            norms = {name: built.get_submodule(name) for name in relus_behind_tlu(built)}
            names = [name for name, norm in norms.items() if norm not in _told]
            _told.update(norms.values())
            if names:
                shown = ', '.join(names[:3])
                warn_once(
                    f'{type(built).__name__}: a ReLU follows FRN with tlu=True in {len(names)} places ({shown}), and '
                    'cuts off at 0 what a threshold below 0 lets through. In a ResNet of a host, '
                    "type='XBN...', xbn=dict(scope='full', norm_cfg=dict(type='FRN', tlu=True)) takes the ReLUs "
                    'away; elsewhere set act_cfg=None, or tlu=False'
                )
        return built

    return guarded
