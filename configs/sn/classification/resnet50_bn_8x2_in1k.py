"""ResNet-50, BN, 2 images on each of 8 GPUs, ImageNet: paper sn, Table II."""

_base_ = ['../../_base_/resnet50_gamma1.py', '../../_base_/imagenet_8x2.py', '../../_base_/step_100e.py']
