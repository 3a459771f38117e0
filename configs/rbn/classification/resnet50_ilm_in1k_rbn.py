"""ResNet-50, ILM over GN with 32 groups, ImageNet: paper rbn, Table 1."""

_base_ = './resnet50_bn_in1k_rbn.py'

model = dict(backbone=dict(norm_cfg=dict(type='ILM')))
