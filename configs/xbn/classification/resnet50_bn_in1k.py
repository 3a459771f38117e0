"""ResNet-50, BN, ImageNet: paper xbn, Table 1, Table 2 and Table A2."""

_base_ = ['../../_base_/resnet50.py', '../../_base_/imagenet.py', '../../_base_/step_100e.py']
