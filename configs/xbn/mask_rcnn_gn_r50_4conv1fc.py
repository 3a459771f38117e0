"""Mask R-CNN, R-50 FPN, GN, also in FPN and box head: paper xbn, Table 4, row GN, ResNet-50, 4conv1fc head box."""

_base_ = './mask_rcnn_gn_r50.py'

model = _base_.gn_heads
