"""ResNet-101, XBN, cosine decay, ImageNet: paper xbn, Table A1."""

_base_ = ['./resnet101_xbn_in1k.py', '../_base_/advanced.py']

param_scheduler = _base_.cosine
