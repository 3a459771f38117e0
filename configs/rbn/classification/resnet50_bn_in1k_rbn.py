"""ResNet-50, BN, ImageNet: paper rbn, Tables 1, 2 and 3."""

_base_ = ['../../_base_/resnet50.py', '../../_base_/imagenet.py', '../../_base_/step_100e.py']
