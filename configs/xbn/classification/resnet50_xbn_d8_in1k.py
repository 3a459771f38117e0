"""ResNet-50, XBN in every 8th block, ImageNet: paper xbn, Figure 7."""

_base_ = './resnet50_xbn_in1k.py'

model = dict(backbone=dict(xbn=dict(every=8)))
