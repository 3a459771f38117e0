"""ResNet-50, GN, 2 images on each of 8 GPUs, ImageNet: paper sn, Table II."""

_base_ = './resnet50_bn_8x2_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=32)))
