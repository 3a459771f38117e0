"""ResNet-50, XBN, ImageNet: paper xbn, Table 1 and Table 2.

The stem's norm is GN too, as in the authors' code and released weights; the paper speaks of the blocks alone.
"""

_base_ = './resnet50_bn_in1k.py'

model = dict(backbone=dict(type='XBNResNet', xbn=dict(stem=True)))
