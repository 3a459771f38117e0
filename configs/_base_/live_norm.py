"""Norms train: batch statistics in training, no stage frozen. For small batches and BN-pretrained weights.

    _base_ = [YOUR_CONFIG, 'PATH/configs/_base_/live_norm.py']
    model = dict(backbone=dict(type='XBNResNet', **_base_.live_norm))
"""
live_norm = dict(norm_eval=False, frozen_stages=-1)

# Without it each rank evaluates with its own running statistics, and the checkpoint holds the first rank's.
custom_hooks = [dict(type='mmnorm.statistics.SyncStatisticsHook')]
