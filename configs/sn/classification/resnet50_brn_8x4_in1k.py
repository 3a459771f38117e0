"""ResNet-50, BRN, 4 images on each of 8 GPUs, ImageNet: paper sn, Section 4.1.3."""

_base_ = './resnet50_bn_8x4_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(type='BRN', r_max=1.5, d_max=0.5)))
