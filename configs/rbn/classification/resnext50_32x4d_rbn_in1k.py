"""ResNeXt-50, RBN, ImageNet: paper rbn, Table 1."""

_base_ = './resnext50_32x4d_bn_in1k_rbn.py'

model = dict(backbone=dict(norm_cfg=dict(type='RBN')))
