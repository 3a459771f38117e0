"""ResNet-50, BN, cosine decay, ImageNet: paper xbn, Table 3."""

_base_ = ['./resnet50_bn_in1k.py', '../_base_/advanced.py']

param_scheduler = _base_.cosine
