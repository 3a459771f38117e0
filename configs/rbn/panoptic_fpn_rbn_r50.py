"""Panoptic FPN, R-50, RBN: paper rbn, Table 7, row ResNet-50-RBN.

From weights pretrained with RBN. To start from BN's, which then computes what BN did: ``--cfg-options
model.backbone.init_cfg.checkpoint=torchvision://resnet50``.
"""
_base_ = './panoptic_fpn_bn_r50.py'

model = dict(
    backbone=dict(norm_cfg=dict(type='RBN'), init_cfg=dict(checkpoint='pretrained/resnet50_rbn.pth')))
