"""ResNet-101, XBN, label smoothing, ImageNet: paper xbn, Table A1."""

_base_ = ['./resnet101_xbn_in1k.py', '../_base_/advanced.py']

model = _base_.label_smoothing
