"""BNs are FrozenBN: statistics and affine stay as they were loaded. For weights pretrained with the same norms.

    _base_ = [YOUR_CONFIG, 'PATH/configs/_base_/frozen_norm.py']
    model = dict(backbone=dict(type='XBNResNet', **_base_.frozen_norm))

For a backbone of BN or SyncBN. Where YOUR_CONFIG has another norm of mmnorm (EN, SN, RBN, BGN), freeze that one:
norm_cfg=dict(frozen=True).
"""

frozen_norm = dict(norm_cfg=dict(type='FrozenBN'))
