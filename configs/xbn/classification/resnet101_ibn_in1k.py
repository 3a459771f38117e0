"""ResNet-101, IBN-Net-a, ImageNet: paper xbn, Table 2."""

_base_ = './resnet50_ibn_in1k.py'

model = dict(backbone=dict(depth=101))
