"""ResNet-101, BW, ImageNet: paper xbn, Table A2."""

_base_ = './resnet50_bw_in1k.py'

model = dict(backbone=dict(depth=101))
