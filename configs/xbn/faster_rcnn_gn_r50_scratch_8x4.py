"""Faster R-CNN, R-50 FPN, GN, from scratch: paper xbn, Table 6, row GN, 4 images on each of 8 GPUs."""

_base_ = './faster_rcnn_bn_r50_scratch_8x4.py'

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=32)))
