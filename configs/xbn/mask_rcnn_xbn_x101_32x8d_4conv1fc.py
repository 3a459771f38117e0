"""Mask R-CNN, X-101-32x8d FPN, XBN: paper xbn, Table 4, row XBNBlock_GN, ResNeXt-101, 4conv1fc head box."""

_base_ = ['./mask_rcnn_xbn_x101_32x8d.py', '../_base_/gn_norm.py']

model = _base_.gn_heads
