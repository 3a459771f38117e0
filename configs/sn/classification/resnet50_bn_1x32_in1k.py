"""ResNet-50, BN, 32 images on one GPU, ImageNet: paper sn, Table II."""

_base_ = ['../../_base_/resnet50_gamma1.py', '../../_base_/imagenet_1x32.py', '../../_base_/step_100e.py']
