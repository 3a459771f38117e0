"""Panoptic FPN, R-101, BN: paper rbn, Table 7, row ResNet-101-BN."""

_base_ = './panoptic_fpn_bn_r50.py'

model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
