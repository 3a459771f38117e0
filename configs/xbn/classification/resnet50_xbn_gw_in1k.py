"""ResNet-50, XBN with Group Whitening, ImageNet: paper xbn, Table A2."""

_base_ = './resnet50_xbn_in1k.py'

model = dict(backbone=dict(xbn=dict(norm_cfg=dict(type='GW'))))
