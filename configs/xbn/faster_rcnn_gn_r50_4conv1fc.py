"""Faster R-CNN, R-50 FPN, GN, also in FPN and box head: paper xbn, Table 5, row GN, 4conv1fc head box."""

_base_ = './faster_rcnn_gn_r50.py'

model = _base_.gn_heads
