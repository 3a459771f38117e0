"""ResNet-50, XBN, cosine decay, ImageNet: paper xbn, Table 3."""

_base_ = ['./resnet50_xbn_in1k.py', '../_base_/advanced.py']

param_scheduler = _base_.cosine
