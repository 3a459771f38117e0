"""ResNet-50, GN, 16 images on one GPU, ImageNet: paper sn, Table II."""

_base_ = './resnet50_bn_1x16_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=32)))
