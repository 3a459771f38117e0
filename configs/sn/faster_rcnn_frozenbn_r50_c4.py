"""Faster R-CNN R-50 C4, BN frozen: paper sn, Table IV, row BN-dagger | BN-dagger."""

_base_ = ['./_base_/faster_rcnn_bn_r50_c4_120k.py', '../_base_/frozen_norm.py']

model = dict(backbone=_base_.frozen_norm, roi_head=dict(shared_head=_base_.frozen_norm))
