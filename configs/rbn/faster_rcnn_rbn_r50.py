"""Faster R-CNN, R-50 FPN, RBN: paper rbn, Table 5, row ResNet-50-RBN.

The authors released no ResNet-50: it starts from torchvision's BN weights, and computes what BN did. For weights that
you pretrained with RBN: ``--cfg-options model.backbone.init_cfg.checkpoint=FILE``.
"""

_base_ = './faster_rcnn_bn_r50.py'

model = dict(backbone=dict(norm_cfg=dict(type='RBN')))
