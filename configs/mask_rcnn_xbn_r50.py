"""Mask R-CNN, R-50 FPN, XBN: paper xbn, Table 4, row XBNBlock_GN, ResNet-50, 2fc head box.

Batch 16 on 8 GPUs, 90k iterations (1x), COCO 2017; fine-tuned from XBN-pretrained weights with the BNs frozen. The
authors' detection code falls back to GN with 32 groups on weights trained with 64; this uses 64.
"""

_base_ = ['./_base_/mask_rcnn_r50_fpn_90k.py', './_base_/frozen_norm.py']

model = dict(
    backbone=dict(
        type='XBNResNet',
        xbn=dict(stem=True),  # as in the authors' released weights
        init_cfg=dict(checkpoint='pretrained/resnet50_xbn.pth'),
        **_base_.frozen_norm,
    )
)
