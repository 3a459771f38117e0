"""ResNeXt-50 32x4d, BN, mixup, ImageNet: paper xbn, Table A1."""

_base_ = ['./resnext50_32x4d_bn_in1k.py', '../_base_/advanced.py']

model = _base_.mixup
