"""Mask R-CNN R-50 FPN, BN frozen, no norm in the heads: paper sn, Table VI, row BN-dagger | -.

2 images on each of 8 GPUs; the rate drops after 120k and 160k of 180k iterations (2x), which is Detectron's schedule.
Gamma and beta have no weight decay; 2000 proposals an image are Detectron's. Stem and first stage are fixed, as in
mmdet and in the authors' later release.
"""

_base_ = [
    '../_base_/mask_rcnn_r50_fpn_180k.py',
    '../_base_/frozen_norm.py',
    '../_base_/live_norm.py',
    './_base_/detector_norms.py',
]

model = dict(backbone=_base_.frozen_norm, train_cfg=dict(rpn_proposal=dict(max_per_img=2000)))
optim_wrapper = dict(paramwise_cfg=_base_.sn_biases)
