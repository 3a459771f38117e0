"""Faster R-CNN R-50 FPN, SN in the backbone, SN in FPN and box head: paper sn, Table V, row SN | SN."""

_base_ = './faster_rcnn_frozenbn_r50_sn_head.py'

model = dict(backbone=_base_.sn_norm)
