"""Faster R-CNN R-50 FPN, BN frozen, SN in FPN and box head: paper sn, Table V, row BN-dagger | SN."""

_base_ = './faster_rcnn_frozenbn_r50_plain_head.py'

model = _base_.sn_heads
