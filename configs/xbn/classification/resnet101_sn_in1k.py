"""ResNet-101, SN, ImageNet: paper xbn, Table 2."""

_base_ = './resnet50_sn_in1k.py'

model = dict(backbone=dict(depth=101))
