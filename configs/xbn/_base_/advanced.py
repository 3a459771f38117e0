"""The advanced training strategies of paper xbn (Section 5.2.2), one by one or together.

    _base_ = [A_ROW_OF_TABLE_2, '../_base_/advanced.py']
    model = dict(_base_.label_smoothing, **_base_.mixup)
    param_scheduler = _base_.cosine

The rate falls each epoch, which the paper leaves open.
"""

label_smoothing = dict(head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)))
mixup = dict(train_cfg=dict(augments=dict(type='Mixup', alpha=0.2)))
cosine = dict(_delete_=True, type='CosineAnnealingLR', T_max=100, by_epoch=True, begin=0, end=100)
