"""Faster R-CNN R-50 C4, BN from scratch: paper sn, Table IV, row BN-double-dagger | BN."""

_base_ = './_base_/faster_rcnn_bn_r50_c4_120k.py'

model = dict(backbone=_base_.scratch_norm, roi_head=dict(shared_head=dict(init_cfg=None)))
