"""ResNet-50, BN, 64 images on each of 8 GPUs, ImageNet: paper bgn, Table 2."""

_base_ = ['../../_base_/resnet50_gamma1.py', '../../_base_/imagenet_8x64.py', '../../_base_/step_120e.py']
