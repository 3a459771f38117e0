"""Faster R-CNN R-50 C4, SN from scratch: paper sn, Table IV, row SN-double-dagger | SN."""

_base_ = './faster_rcnn_bn_r50_c4_scratch.py'

model = dict(backbone=dict(norm_cfg=_base_.sn), roi_head=dict(shared_head=dict(norm_cfg=_base_.sn)))
