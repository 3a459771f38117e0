"""Faster R-CNN, R-50 FPN, XBN at the third norm of a block: a variant of paper xbn, Table 5, XBNBlock_GN, 2fc.

The paper has it on ImageNet only (XBNBlock-P3, Table 1). Its weights have to be pretrained: nobody released any.
"""

_base_ = './faster_rcnn_xbn_r50.py'

model = dict(backbone=dict(xbn=dict(position=3), init_cfg=dict(checkpoint='pretrained/resnet50_xbn_p3.pth')))
