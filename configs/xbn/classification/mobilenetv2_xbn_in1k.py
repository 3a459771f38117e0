"""MobileNetV2, XBN, standard protocol, ImageNet: paper xbn, Table A3."""

_base_ = './mobilenetv2_bn_in1k.py'

model = dict(backbone=dict(type='XBNMobileNetV2'))
