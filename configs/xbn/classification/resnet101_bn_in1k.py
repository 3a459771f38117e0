"""ResNet-101, BN, ImageNet: paper xbn, Table 2 and Table A2."""

_base_ = './resnet50_bn_in1k.py'

model = dict(backbone=dict(depth=101))
