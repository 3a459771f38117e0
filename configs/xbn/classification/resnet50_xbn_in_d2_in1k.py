"""ResNet-50, XBN with IN in every 2nd block, ImageNet: paper xbn, Figure 7."""

_base_ = './resnet50_xbn_in_in1k.py'

model = dict(backbone=dict(xbn=dict(every=2)))
