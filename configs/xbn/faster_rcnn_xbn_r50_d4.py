"""Faster R-CNN, R-50 FPN, XBN in every 4th block: a variant of paper xbn, Table 5, XBNBlock_GN, 2fc.

The paper has it on ImageNet only (XBNBlock-D4, Figure 7). Its weights have to be pretrained: nobody released any.
"""

_base_ = './faster_rcnn_xbn_r50.py'

model = dict(backbone=dict(xbn=dict(every=4), init_cfg=dict(checkpoint='pretrained/resnet50_xbn_d4.pth')))
