"""ShuffleNetV2 0.5x, BN, standard protocol, ImageNet: paper xbn, Figure A12."""

_base_ = './shufflenetv2_x10_bn_in1k.py'

model = dict(backbone=dict(widen_factor=0.5))
