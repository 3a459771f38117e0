"""Mask R-CNN, R-50 FPN, XBN, started from torchvision's BN weights.

The BNs are live: batch-free layers in front of frozen BNs that never saw them would give garbage.
"""

_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', './_base_/live_norm.py']

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
model = dict(backbone=dict(type='XBNResNet', **_base_.live_norm))
auto_scale_lr = dict(enable=True)
