"""ResNet-50, SN, 32 images on one GPU, ImageNet: paper sn, Table II."""

_base_ = ['./resnet50_bn_1x32_in1k.py', './_base_/sn.py']

model = _base_.sn
