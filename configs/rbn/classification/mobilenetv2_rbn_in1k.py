"""MobileNetV2, RBN, ImageNet: paper rbn, Tables 1 and 2."""

_base_ = './mobilenetv2_bn_in1k_rbn.py'

model = dict(backbone=dict(norm_cfg=dict(type='RBN')))
