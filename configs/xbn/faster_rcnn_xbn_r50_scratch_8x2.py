"""Faster R-CNN, R-50 FPN, XBN, from scratch: paper xbn, Table 6, row XBNBlock_GN, 2 images on each of 8 GPUs.

The stem's norm is BN, as in the paper's text: no released weights ask for another here.
"""

_base_ = './faster_rcnn_bn_r50_scratch_8x2.py'

model = dict(backbone=dict(type='XBNResNet'))
