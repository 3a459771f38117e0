"""ResNet-50, IN, 4 images on each of 8 GPUs, ImageNet: paper bgn, Table 2."""

_base_ = './resnet50_bn_8x4_120e_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(type='IN', affine=True)))
