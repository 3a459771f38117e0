"""Mask R-CNN, X-101-32x8d FPN, BN frozen: paper xbn, Table 4, row BN-dagger, ResNeXt-101, 2fc head box."""

_base_ = ['./_base_/mask_rcnn_x101_32x8d_fpn_180k.py', '../_base_/frozen_norm.py']

model = dict(backbone=_base_.frozen_norm)
