"""ResNeXt-50 32x4d, XBN, ImageNet: paper xbn, Table 2."""

_base_ = './resnext50_32x4d_bn_in1k.py'

model = dict(backbone=dict(type='XBNResNeXt', xbn=dict(stem=True)))
