"""Faster R-CNN R-50 C4, GN from scratch: paper sn, Table IV, row GN-double-dagger | GN."""

_base_ = './faster_rcnn_bn_r50_c4_scratch.py'

model = dict(backbone=dict(norm_cfg=_base_.gn), roi_head=dict(shared_head=dict(norm_cfg=_base_.gn)))
