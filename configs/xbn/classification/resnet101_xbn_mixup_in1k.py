"""ResNet-101, XBN, mixup, ImageNet: paper xbn, Table A1."""

_base_ = ['./resnet101_xbn_in1k.py', '../_base_/advanced.py']

model = _base_.mixup
