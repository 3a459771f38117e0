"""ResNet-50, BN, mixup, ImageNet: paper xbn, Table 3."""

_base_ = ['./resnet50_bn_in1k.py', '../_base_/advanced.py']

model = _base_.mixup
