"""Faster R-CNN, R-50 FPN, XBN: paper xbn, Table 5, row XBNBlock_GN, 2fc head box.

Fine-tuned from XBN-pretrained weights with the BNs frozen. The authors' detection code falls back to GN with 32 groups
on weights trained with 64; this uses 64.
"""

_base_ = ['../_base_/faster_rcnn_r50_fpn_90k.py', '../_base_/frozen_norm.py']

model = dict(
    backbone=dict(
        type='XBNResNet',
        xbn=dict(stem=True),  # as in the authors' released weights
        init_cfg=dict(checkpoint='pretrained/resnet50_xbn.pth'),
        **_base_.frozen_norm,
    )
)
