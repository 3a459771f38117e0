"""ResNet-101, XBN, label smoothing, mixup and cosine decay, ImageNet: paper xbn, Table A1."""

_base_ = ['./resnet101_xbn_in1k.py', '../_base_/advanced.py']

model = dict(_base_.label_smoothing, **_base_.mixup)
param_scheduler = _base_.cosine
