"""Faster R-CNN, R-50 FPN, IBN-Net-a, which paper xbn compares XBN with (Table 2, ImageNet): no row in its Table 5.

IBN after the first convolution of each block of the first three stages. As XBN's GNs do, it trains gamma, beta and IN
in the stages that are not frozen; its BN half uses running statistics.
"""

_base_ = ['../_base_/faster_rcnn_r50_fpn_90k.py', '../_base_/frozen_norm.py']

model = dict(
    backbone=dict(
        type='XBNResNet',
        xbn=dict(position=1, stages=(0, 1, 2), norm_cfg=dict(type='IBN')),
        init_cfg=dict(checkpoint='pretrained/resnet50_ibn_a.pth'),
        **_base_.frozen_norm,
    )
)
