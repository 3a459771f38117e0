"""Faster R-CNN R-50 C4, SN fine-tuned: paper sn, Table IV, row SN | SN."""

_base_ = './_base_/faster_rcnn_bn_r50_c4_120k.py'

model = dict(backbone=_base_.sn_norm, roi_head=dict(shared_head=_base_.sn_norm))
