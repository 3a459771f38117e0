"""From scratch: no pretrained weights, norms train, no stage frozen.

    _base_ = [YOUR_CONFIG, 'PATH/configs/_base_/scratch_norm.py']
    model = dict(backbone=dict(type='XBNResNet', **_base_.scratch_norm))

If the BNs of YOUR_CONFIG are FrozenBN, as in rows of mode "frozen", add norm_cfg=dict(type='BN').
"""

_base_ = './live_norm.py'

scratch_norm = dict(init_cfg=None, **_base_.live_norm)
