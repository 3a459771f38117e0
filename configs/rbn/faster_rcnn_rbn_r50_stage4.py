"""Faster R-CNN, R-50 FPN, RBN in stage 4 alone, after paper rbn's Table 4, which places it by stage (CIFAR only).

Columns S.1 to S.4 are stages=(0, ) to (3, ), "All" is scope='full' without stages (the stem included), "No" is
faster_rcnn_bn_r50.py. Position and every-n-th block work too: see mmnorm/blocks/xbn.py. From BN's weights, which RBN
takes so that it computes what BN did.
"""

_base_ = './faster_rcnn_bn_r50.py'

model = dict(backbone=dict(type='XBNResNet', xbn=dict(scope='full', stages=(3,), norm_cfg=dict(type='RBN'))))
