"""Mask R-CNN, R-50 FPN, 180k iterations: 2x for 16 images, 1x for 8."""

_base_ = './mask_rcnn_r50_fpn_90k.py'

train_cfg = dict(max_iters=180000)
param_scheduler = [
    _base_.warmup,
    dict(type='MultiStepLR', by_epoch=False, milestones=[120000, 160000], gamma=0.1),
]
