"""ResNet-50, XBN with Group Whitening in every 2nd block, ImageNet: paper xbn, Table A2."""

_base_ = './resnet50_xbn_gw_in1k.py'

model = dict(backbone=dict(xbn=dict(every=2)))
