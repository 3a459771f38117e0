"""Mask R-CNN, R-50 FPN, XBN, from scratch: normal BNs, not frozen, as in Section 5.3.2 of paper xbn."""

_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', './_base_/scratch_norm.py']

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
model = dict(backbone=dict(type='XBNResNet', **_base_.scratch_norm))
auto_scale_lr = dict(enable=True)
