"""ResNet-101, SN, 32 images on each of 8 GPUs, ImageNet: paper sn, Table III."""

_base_ = './resnet50_sn_8x32_in1k.py'

model = dict(backbone=dict(depth=101))
