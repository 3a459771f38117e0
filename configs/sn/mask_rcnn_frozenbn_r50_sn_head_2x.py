"""Mask R-CNN R-50 FPN, BN frozen, SN in FPN, box and mask head: paper sn, Table VI, row BN-dagger | SN."""

_base_ = './mask_rcnn_frozenbn_r50_plain_head_2x.py'

model = _base_.sn_mask_heads
