"""Mask R-CNN, R-50 FPN, BGN, 2 images on each of 8 GPUs, from scratch: paper bgn has no such table.

See faster_rcnn_bgn_r50.py.
"""

_base_ = ['../_base_/mask_rcnn_r50_fpn_90k.py', '../_base_/scratch_norm.py']

model = dict(backbone=dict(norm_cfg=dict(type='BGN', num_groups='auto', batch_size=2), **_base_.scratch_norm))
