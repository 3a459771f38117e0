"""ResNet-101, GN with 32 groups, ImageNet: paper xbn, Table 2."""

_base_ = './resnet50_gn_in1k.py'

model = dict(backbone=dict(depth=101))
