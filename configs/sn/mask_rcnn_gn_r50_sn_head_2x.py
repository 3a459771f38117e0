"""Mask R-CNN R-50 FPN, GN in the backbone, SN in FPN, box and mask head: paper sn, Table VI, row GN | SN."""

_base_ = './mask_rcnn_frozenbn_r50_sn_head_2x.py'

model = dict(data_preprocessor=_base_.gn_pixels, backbone=_base_.gn_norm)
