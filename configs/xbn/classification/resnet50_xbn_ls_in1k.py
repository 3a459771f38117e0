"""ResNet-50, XBN, label smoothing, ImageNet: paper xbn, Table 3."""

_base_ = ['./resnet50_xbn_in1k.py', '../_base_/advanced.py']

model = _base_.label_smoothing
