"""Mask R-CNN, X-101-32x8d FPN, XBN: paper xbn, Table 4, row XBNBlock_GN, ResNeXt-101, 2fc head box.

The weights have to be pretrained, with xbn=dict(stem=True): the authors released ResNet-50 and ResNeXt-50 only.
"""

_base_ = ['./_base_/mask_rcnn_x101_32x8d_fpn_180k.py', '../_base_/frozen_norm.py']

model = dict(
    backbone=dict(
        type='XBNResNeXt',
        xbn=dict(stem=True),
        init_cfg=dict(checkpoint='pretrained/resnext101_32x8d_xbn.pth'),
        **_base_.frozen_norm,
    )
)
