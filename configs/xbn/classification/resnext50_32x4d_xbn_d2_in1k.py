"""ResNeXt-50 32x4d, XBN in every 2nd block, ImageNet: paper xbn, Table 2."""

_base_ = './resnext50_32x4d_xbn_in1k.py'

model = dict(backbone=dict(xbn=dict(every=2)))
