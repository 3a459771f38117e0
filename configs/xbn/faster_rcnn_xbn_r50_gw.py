"""Faster R-CNN, R-50 FPN, XBN with Group Whitening: a variant of paper xbn, Table 5, XBNBlock_GN, 2fc.

The paper has it on ImageNet only (XBNBlock_GW, Table A2). Its weights have to be pretrained: nobody released any.
"""

_base_ = './faster_rcnn_xbn_r50.py'

model = dict(
    backbone=dict(xbn=dict(norm_cfg=dict(type='GW')), init_cfg=dict(checkpoint='pretrained/resnet50_xbn_gw.pth'))
)
