"""ResNet-50, RBN* (scaling by the deviation of each channel), ImageNet: paper rbn, Tables 1 and 3."""

_base_ = './resnet50_rbn_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(scale_stat='channel_std')))
