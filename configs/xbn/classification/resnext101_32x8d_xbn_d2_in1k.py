"""ResNeXt-101 32x8d, XBN in every 2nd block, ImageNet: paper xbn, Table 2."""

_base_ = './resnext101_32x8d_xbn_in1k.py'

model = dict(backbone=dict(xbn=dict(every=2)))
