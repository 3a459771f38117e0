"""ShuffleNetV2 1.0x, XBN, advanced protocol, ImageNet: paper xbn, Figure A12."""

_base_ = './shufflenetv2_x10_bn_advanced_in1k.py'

model = dict(backbone=dict(type='XBNShuffleNetV2'))
