"""Norms train: batch statistics in training, no stage frozen. For small batches and BN-pretrained weights.

    _base_ = [YOUR_CONFIG, 'PATH/configs/_base_/live_norm.py']
    model = dict(backbone=dict(type='XBNResNet', **_base_.live_norm))

If the BNs of YOUR_CONFIG are FrozenBN, as in rows of mode "frozen", add norm_cfg=dict(type='BN').

Many of mmnorm's configs have this file already. Where a config has it, mmnorm averages running statistics over ranks
before they are evaluated and saved (SyncStatisticsHook); otherwise each rank evaluates with its own, and the checkpoint
holds the first rank's.
"""

live_norm = dict(norm_eval=False, frozen_stages=-1)
