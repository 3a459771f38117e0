"""Faster R-CNN, R-50 FPN, GN: paper xbn, Table 5, row GN, 2fc head box.

The authors pretrained GN themselves and released nothing: Detectron's GN weights, as in mmdet's GN configs.
"""

_base_ = ['../_base_/faster_rcnn_r50_fpn_90k.py', '../_base_/gn_norm.py']

model = dict(data_preprocessor=_base_.gn_pixels, backbone=_base_.gn_norm)
