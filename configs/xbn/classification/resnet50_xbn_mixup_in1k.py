"""ResNet-50, XBN, mixup, ImageNet: paper xbn, Table 3."""

_base_ = ['./resnet50_xbn_in1k.py', '../_base_/advanced.py']

model = _base_.mixup
