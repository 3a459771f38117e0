"""ShuffleNetV2 0.5x, XBN, standard protocol, ImageNet: paper xbn, Figure A12."""

_base_ = './shufflenetv2_x05_bn_in1k.py'

model = dict(backbone=dict(type='XBNShuffleNetV2'))
