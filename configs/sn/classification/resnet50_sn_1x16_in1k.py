"""ResNet-50, SN, 16 images on one GPU, ImageNet: paper sn, Table II."""

_base_ = ['./resnet50_bn_1x16_in1k.py', './_base_/sn.py']

model = _base_.sn
