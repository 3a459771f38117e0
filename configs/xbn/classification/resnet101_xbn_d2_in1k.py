"""ResNet-101, XBN in every 2nd block, ImageNet: paper xbn, Table 2."""

_base_ = './resnet101_xbn_in1k.py'

model = dict(backbone=dict(xbn=dict(every=2)))
