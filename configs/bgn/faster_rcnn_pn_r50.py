"""Faster R-CNN, R-50 FPN, PN, a baseline of paper bgn: as faster_rcnn_bgn_r50.py."""

_base_ = './faster_rcnn_bgn_r50.py'

model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='PN')))
