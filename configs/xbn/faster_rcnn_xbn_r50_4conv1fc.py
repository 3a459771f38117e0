"""Faster R-CNN, R-50 FPN, XBN: paper xbn, Table 5, row XBNBlock_GN, 4conv1fc head box.

FPN and box head have GN with 32 groups.
"""

_base_ = ['./faster_rcnn_xbn_r50.py', '../_base_/gn_norm.py']

model = _base_.gn_heads
