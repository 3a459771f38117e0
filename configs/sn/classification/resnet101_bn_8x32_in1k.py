"""ResNet-101, BN, 32 images on each of 8 GPUs, ImageNet: paper sn, Table III."""

_base_ = './resnet50_bn_8x32_in1k.py'

model = dict(backbone=dict(depth=101))
