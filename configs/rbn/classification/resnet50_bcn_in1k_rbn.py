"""ResNet-50, BCN, ImageNet: paper rbn, Table 1."""

_base_ = './resnet50_bn_in1k_rbn.py'

model = dict(backbone=dict(norm_cfg=dict(type='BCN')))
