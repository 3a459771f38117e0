"""ResNeXt-101 32x8d, BN, ImageNet: paper xbn, Table 2."""

_base_ = './resnext50_32x4d_bn_in1k.py'

model = dict(backbone=dict(depth=101, width_per_group=8))
