"""ResNet-50, RBN with centering by spatial_std, ImageNet: paper rbn, Table 3."""

_base_ = './resnet50_rbn_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(center_stat='spatial_std')))
