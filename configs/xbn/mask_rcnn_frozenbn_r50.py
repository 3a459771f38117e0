"""Mask R-CNN, R-50 FPN, BN frozen: paper xbn, Table 4, row BN-dagger, ResNet-50, 2fc head box."""

_base_ = ['../_base_/mask_rcnn_r50_fpn_90k.py', '../_base_/frozen_norm.py']

model = dict(backbone=_base_.frozen_norm)
