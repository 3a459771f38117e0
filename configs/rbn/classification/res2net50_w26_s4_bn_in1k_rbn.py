"""Res2Net-50, BN, ImageNet: paper rbn, Table 1."""

_base_ = './resnet50_bn_in1k_rbn.py'

model = dict(backbone=dict(type='Res2Net', scales=4, base_width=26, deep_stem=False, avg_down=False))
