"""ResNet-50, BN, 8 images on one GPU, ImageNet: paper sn, Table II."""

_base_ = ['../../_base_/resnet50_gamma1.py', '../../_base_/imagenet_1x8.py', '../../_base_/step_100e.py']
