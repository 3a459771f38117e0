"""Faster R-CNN, R-50 FPN, XBN with IN: a variant of paper xbn, Table 5, XBNBlock_GN, 2fc.

The paper has it on ImageNet only (XBNBlock_IN, Figure 7). Its weights have to be pretrained: nobody released any.
IN has gamma and beta here, as GN has; the authors' IN has none by default (``affine=False``).
"""

_base_ = './faster_rcnn_xbn_r50.py'

model = dict(
    backbone=dict(
        xbn=dict(norm_cfg=dict(type='IN', affine=True)), init_cfg=dict(checkpoint='pretrained/resnet50_xbn_in.pth')
    )
)
