"""ResNet-50, IN, 16 images on each of 8 GPUs, ImageNet: paper bgn, Table 2."""

_base_ = './resnet50_bn_8x16_120e_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(type='IN', affine=True)))
