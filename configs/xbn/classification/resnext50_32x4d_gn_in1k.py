"""ResNeXt-50 32x4d, GN with 32 groups, ImageNet: paper xbn, Table 2."""

_base_ = './resnext50_32x4d_bn_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=32)))
