"""Res2Net-50, RBN, ImageNet: paper rbn, Table 1."""

_base_ = './res2net50_w26_s4_bn_in1k_rbn.py'

model = dict(backbone=dict(norm_cfg=dict(type='RBN')))
