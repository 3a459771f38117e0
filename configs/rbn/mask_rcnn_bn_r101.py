"""Mask R-CNN, R-101 FPN, BN: paper rbn, Table 6, row ResNet-101-BN."""

_base_ = 'mmdet::mask_rcnn/mask-rcnn_r101_fpn_1x_coco.py'

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
auto_scale_lr = dict(enable=True)
