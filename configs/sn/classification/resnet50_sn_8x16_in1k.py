"""ResNet-50, SN, 16 images on each of 8 GPUs, ImageNet: paper sn, Table II."""

_base_ = ['./resnet50_bn_8x16_in1k.py', './_base_/sn.py']

model = _base_.sn
