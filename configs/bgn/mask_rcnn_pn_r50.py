"""Mask R-CNN, R-50 FPN, PN, a baseline of paper bgn: as mask_rcnn_bgn_r50.py."""

_base_ = './mask_rcnn_bgn_r50.py'

model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='PN')))
