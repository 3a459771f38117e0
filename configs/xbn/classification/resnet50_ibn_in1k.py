"""ResNet-50, IBN-Net-a, ImageNet: paper xbn, Table 2."""

_base_ = './resnet50_bn_in1k.py'

model = dict(backbone=dict(type='XBNResNet', xbn=dict(position=1, stages=(0, 1, 2), norm_cfg=dict(type='IBN'))))
