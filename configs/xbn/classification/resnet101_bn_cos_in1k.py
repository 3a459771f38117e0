"""ResNet-101, BN, cosine decay, ImageNet: paper xbn, Table A1."""

_base_ = ['./resnet101_bn_in1k.py', '../_base_/advanced.py']

param_scheduler = _base_.cosine
