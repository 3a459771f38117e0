"""ResNet-50, LN (GN with one group), 8 images on each of 8 GPUs, ImageNet: paper bgn, Table 2."""

_base_ = './resnet50_bn_8x8_120e_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=1)))
