"""Faster R-CNN, R-50 FPN, BN frozen: paper xbn, Table 5, row BN-dagger, 2fc head box."""

_base_ = ['../_base_/faster_rcnn_r50_fpn_90k.py', '../_base_/frozen_norm.py']

model = dict(backbone=_base_.frozen_norm)
