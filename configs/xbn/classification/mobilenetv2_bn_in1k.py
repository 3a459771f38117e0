"""MobileNetV2, BN, standard protocol, ImageNet: paper xbn, Table A3."""

_base_ = ['../../_base_/mobilenetv2.py', '../../_base_/imagenet.py', '../../_base_/step_100e.py']
