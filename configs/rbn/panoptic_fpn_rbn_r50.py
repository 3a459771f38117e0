"""Panoptic FPN, R-50, RBN: paper rbn, Table 7, row ResNet-50-RBN.

The authors released no ResNet-50: it starts from torchvision's BN weights, and computes what BN did. For weights that
you pretrained with RBN: ``--cfg-options model.backbone.init_cfg.checkpoint=FILE``.
"""

_base_ = './panoptic_fpn_bn_r50.py'

model = dict(backbone=dict(norm_cfg=dict(type='RBN')))
