"""Norms train: batch statistics in training, no stage frozen. For small batches and BN-pretrained weights.

    _base_ = [YOUR_CONFIG, 'PATH/configs/_base_/live_norm.py']
    model = dict(backbone=dict(type='XBNResNet', **_base_.live_norm))

If the BNs of YOUR_CONFIG are FrozenBN, as in rows of mode "frozen", add norm_cfg=dict(type='BN').

mmengine refuses two bases that both have custom_hooks: if YOUR_CONFIG has some, leave this file out, write norm_eval
and frozen_stages into your backbone, and add the hook to your list. Many of mmnorm's configs have this file already.
"""

live_norm = dict(norm_eval=False, frozen_stages=-1)

# Without it each rank evaluates with its own running statistics, and the checkpoint holds the first rank's.
custom_hooks = [dict(type='mmnorm.openmmlab.hooks.SyncStatisticsHook')]
