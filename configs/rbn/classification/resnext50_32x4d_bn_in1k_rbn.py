"""ResNeXt-50, BN, ImageNet: paper rbn, Table 1."""

_base_ = './resnet50_bn_in1k_rbn.py'

model = dict(backbone=dict(type='ResNeXt', groups=32, width_per_group=4))
