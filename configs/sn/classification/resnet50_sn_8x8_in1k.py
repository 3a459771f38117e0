"""ResNet-50, SN, 8 images on each of 8 GPUs, ImageNet: paper sn, Table II."""

_base_ = ['./resnet50_bn_8x8_in1k.py', './_base_/sn.py']

model = _base_.sn
