"""ResNet-50, GN, 1 image on each of 8 GPUs, ImageNet: paper sn, Table II."""

_base_ = ['../../_base_/resnet50_gamma1.py', '../../_base_/imagenet_8x1.py', '../../_base_/step_100e.py']

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=32)))
