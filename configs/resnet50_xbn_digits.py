"""Pretraining on embedded data with XBN blocks: that classifier with the backbone of mask_rcnn_xbn_r50_digits.py."""

_base_ = './resnet50_bn_digits.py'

model = dict(backbone=dict(type='XBNResNet', xbn=dict(norm_cfg=dict(type='GN', num_groups=16))))
