"""MobileNetV2, XBN, advanced protocol, ImageNet: paper xbn, Table A3."""

_base_ = './mobilenetv2_bn_advanced_in1k.py'

model = dict(backbone=dict(type='XBNMobileNetV2'))
