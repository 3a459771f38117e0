"""ResNet-50, RBN with the scaling calibration alone, ImageNet: paper rbn, Table 2."""

_base_ = './resnet50_rbn_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(center=False)))
