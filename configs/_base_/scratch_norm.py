"""From scratch: no pretrained weights, norms train, no stage frozen.

    _base_ = [YOUR_CONFIG, 'PATH/configs/_base_/scratch_norm.py']
    model = dict(backbone=dict(type='XBNResNet', **_base_.scratch_norm))
"""
_base_ = './live_norm.py'

scratch_norm = dict(init_cfg=None, **_base_.live_norm)
