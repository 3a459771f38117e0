"""ResNet-50, XBN at the third norm of a block, ImageNet: paper xbn, Table 1."""

_base_ = './resnet50_xbn_in1k.py'

model = dict(backbone=dict(xbn=dict(position=3)))
