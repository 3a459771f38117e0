"""ResNet-50, GN with 32 groups, ImageNet: paper xbn, Table 1 and Table 2."""

_base_ = './resnet50_bn_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=32)))
