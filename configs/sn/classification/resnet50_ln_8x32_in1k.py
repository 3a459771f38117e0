"""ResNet-50, LN (GN with one group), 32 images on each of 8 GPUs, ImageNet: paper sn, Section 4.1.3."""

_base_ = './resnet50_bn_8x32_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=1)))
