"""Mask R-CNN, X-101-32x8d FPN, GN: paper xbn, Table 4, row GN, ResNeXt-101, 2fc head box.

The weights have to be pretrained, with GN of 32 groups and torchvision's images: nobody released any.
"""

_base_ = ['./_base_/mask_rcnn_x101_32x8d_fpn_180k.py', '../_base_/gn_norm.py']

model = dict(backbone=dict(norm_cfg=_base_.gn, init_cfg=dict(checkpoint='pretrained/resnext101_32x8d_gn.pth')))
