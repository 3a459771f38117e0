"""ResNeXt-101 32x8d, IBN-Net-a, ImageNet: paper xbn, Table 2."""

_base_ = './resnext101_32x8d_bn_in1k.py'

model = dict(backbone=dict(type='XBNResNeXt', xbn=dict(position=1, stages=(0, 1, 2), norm_cfg=dict(type='IBN'))))
