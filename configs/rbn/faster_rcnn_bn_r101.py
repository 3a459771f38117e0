"""Faster R-CNN, R-101 FPN, BN: paper rbn, Table 5, row ResNet-101-BN."""

_base_ = 'mmdet::faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py'

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
auto_scale_lr = dict(enable=True)
