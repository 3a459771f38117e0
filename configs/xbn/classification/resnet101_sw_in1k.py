"""ResNet-101, SW, ImageNet: paper xbn, Table A2."""

_base_ = './resnet50_sw_in1k.py'

model = dict(backbone=dict(depth=101))
