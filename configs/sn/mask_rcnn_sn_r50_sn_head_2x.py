"""Mask R-CNN R-50 FPN, SN in the backbone, SN in FPN, box and mask head: paper sn, Table VI, row SN | SN."""

_base_ = './mask_rcnn_frozenbn_r50_sn_head_2x.py'

model = dict(backbone=_base_.sn_norm)
