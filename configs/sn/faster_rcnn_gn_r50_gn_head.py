"""Faster R-CNN R-50 FPN, GN in the backbone, GN in FPN and box head: paper sn, Table V, row GN | GN."""

_base_ = './faster_rcnn_frozenbn_r50_gn_head.py'

model = dict(data_preprocessor=_base_.gn_pixels, backbone=_base_.gn_norm)
