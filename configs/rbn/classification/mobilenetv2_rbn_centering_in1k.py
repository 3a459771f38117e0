"""MobileNetV2, RBN with the centering calibration alone, ImageNet: paper rbn, Table 2."""

_base_ = './mobilenetv2_rbn_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(scale=False)))
