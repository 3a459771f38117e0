"""ResNet-101, RBN, ImageNet: paper rbn, Table 1."""

_base_ = './resnet101_bn_in1k_rbn.py'

model = dict(backbone=dict(norm_cfg=dict(type='RBN')))
