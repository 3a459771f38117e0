"""All that knows mmengine, mmcv and hosts: mmdet, mmseg, mmpretrain. ``import mmnorm`` calls :func:`install` if it can.

What that changes, and no more:

- **Registries** (registry.py): the normalizers, hooks, the initializer and our ShuffleNetV2 go to mmengine's root
  registries. The registries of the hosts get a further import location, so that our backbones and detectors are there
  when a name is first looked up; no model package of a host is imported before that. mmdet's own FrozenBN, which
  computes the same and is no BatchNorm, gives way to ours then; a project's class under a name of ours stays. The hooks
  are also in ``mmnorm.statistics``, where configs of earlier versions name them.
- **Guards** (guards.py, and ``mmnorm.blocks.guards`` for torch): functions of mmengine, mmcv and mmdet that take every
  BatchNorm for a plain one treat ours right: conversion to and from SyncBN and to frozen BN, folding into convolutions,
  efficient_conv_bn_eval. Initialization by 0 says where it does not make a residual block the identity.
- **Loading** (loading.py): where norms of a checkpoint are not those of the model, loading says what becomes of them,
  and resuming says what differs.
- **Evaluation** (padding.py): every mmengine model says once that norms take statistics over the padding of a batch of
  images of several sizes, or keeps them to each image's own region.
- **Hooks** (hooks.py): every Runner logs at the start of a training which norms the model has and which of them
  norm_eval holds; one whose config has ``live_norm`` averages running statistics over ranks.
- **Counters of FLOPs** (flops.py): mmengine's, mmcv's and fvcore's count our norms as torch's.
- **Configs** (inherit.py): ``_base_ = 'mmnorm::...'`` finds our configs, and ``'mmseg::...'`` finds mmseg's with the
  onedl packages, which mmengine looks for under another name.
- **panopticapi** (panoptic.py): where it is not installed, a stand-in for the few functions of it that mmdet needs.
- **Steps**: Sync layers learn from mmengine's message hub which step a Runner is at, to notice ranks at different ones.
- **Log**: what mmnorm logs goes to mmengine's current logger.
"""

import logging

from mmengine.logging import MessageHub, print_log

from mmnorm.core import set_step


class _ToCurrentLogger(logging.Handler):
    """Hands records on to the logger that a runner has set up, or prints them before there is one."""

    def emit(self, record):
        print_log(self.format(record), 'current', record.levelno)


def install() -> None:
    """Do all of the above; once."""
    from . import flops, guards, hooks, inherit, loading, padding, panoptic, registry

    logger = logging.getLogger('mmnorm')
    if any(isinstance(handler, _ToCurrentLogger) for handler in logger.handlers):
        return
    logger.addHandler(_ToCurrentLogger())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    inherit.install()
    panoptic.install()
    registry.install()
    guards.install()
    loading.install()
    padding.install()
    hooks.install()
    flops.install()
    set_step(lambda: MessageHub.get_current_instance().get_info('iter'))
