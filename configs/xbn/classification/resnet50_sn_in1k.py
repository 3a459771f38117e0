"""ResNet-50, SN, ImageNet: paper xbn, Table 2."""

_base_ = './resnet50_bn_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(type='SN')))
