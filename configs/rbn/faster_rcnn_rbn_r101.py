"""Faster R-CNN, R-101 FPN, RBN: paper rbn, Table 5, row ResNet-101-RBN.

From weights pretrained with RBN. To start from BN's, which then computes what BN did: ``--cfg-options
model.backbone.init_cfg.checkpoint=torchvision://resnet101``.
"""

_base_ = './faster_rcnn_bn_r101.py'

model = dict(backbone=dict(norm_cfg=dict(type='RBN'), init_cfg=dict(checkpoint='pretrained/resnet101_rbn.pth')))
