"""ResNet-101, BN, mixup, ImageNet: paper xbn, Table A1."""

_base_ = ['./resnet101_bn_in1k.py', '../_base_/advanced.py']

model = _base_.mixup
