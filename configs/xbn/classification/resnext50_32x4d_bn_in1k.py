"""ResNeXt-50 32x4d, BN, ImageNet: paper xbn, Table 2."""

_base_ = './resnet50_bn_in1k.py'

model = dict(backbone=dict(type='ResNeXt', groups=32, width_per_group=4))
