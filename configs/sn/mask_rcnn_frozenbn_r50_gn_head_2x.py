"""Mask R-CNN R-50 FPN, BN frozen, GN in FPN, box and mask head: paper sn, Table VI, row BN-dagger | GN."""

_base_ = './mask_rcnn_frozenbn_r50_plain_head_2x.py'

model = _base_.gn_mask_heads
