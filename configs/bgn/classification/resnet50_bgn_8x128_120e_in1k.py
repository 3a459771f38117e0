"""ResNet-50, BGN with 512 groups, 128 images on each of 8 GPUs, ImageNet: paper bgn, Tables 1 and 2."""

_base_ = './resnet50_bn_8x128_120e_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(type='BGN', num_groups=512)))
