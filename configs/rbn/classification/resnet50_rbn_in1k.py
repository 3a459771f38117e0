"""ResNet-50, RBN, ImageNet: paper rbn, Tables 1, 2 and 3."""

_base_ = './resnet50_bn_in1k_rbn.py'

model = dict(backbone=dict(norm_cfg=dict(type='RBN')))
