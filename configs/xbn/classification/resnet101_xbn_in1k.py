"""ResNet-101, XBN, ImageNet: paper xbn, Table 2."""

_base_ = './resnet50_xbn_in1k.py'

model = dict(backbone=dict(depth=101))
