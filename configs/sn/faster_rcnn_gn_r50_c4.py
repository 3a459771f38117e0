"""Faster R-CNN R-50 C4, GN fine-tuned: paper sn, Table IV, row GN | GN."""

_base_ = './_base_/faster_rcnn_bn_r50_c4_120k.py'

model = dict(data_preprocessor=_base_.gn_pixels, backbone=_base_.gn_norm, roi_head=dict(shared_head=_base_.gn_norm))
