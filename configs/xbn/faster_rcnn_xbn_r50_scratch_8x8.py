"""Faster R-CNN, R-50 FPN, XBN, from scratch: paper xbn, Table 6, row XBNBlock_GN, 8 images on each of 8 GPUs."""

_base_ = './faster_rcnn_bn_r50_scratch_8x8.py'

model = dict(backbone=dict(type='XBNResNet'))
