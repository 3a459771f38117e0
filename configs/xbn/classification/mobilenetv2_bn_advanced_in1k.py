"""MobileNetV2, BN, advanced protocol, ImageNet: paper xbn, Table A3."""

_base_ = ['../../_base_/mobilenetv2.py', '../_base_/cosine_150e.py']
