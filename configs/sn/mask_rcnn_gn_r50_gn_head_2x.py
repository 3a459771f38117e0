"""Mask R-CNN R-50 FPN, GN in the backbone, GN in FPN, box and mask head: paper sn, Table VI, row GN | GN."""

_base_ = './mask_rcnn_frozenbn_r50_gn_head_2x.py'

model = dict(data_preprocessor=_base_.gn_pixels, backbone=_base_.gn_norm)
