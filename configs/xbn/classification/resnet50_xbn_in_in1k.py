"""ResNet-50, XBN with IN, ImageNet: paper xbn, Figure 7.

IN has gamma and beta here, as GN has; the authors' IN has none by default (``affine=False``).
"""

_base_ = './resnet50_xbn_in1k.py'

model = dict(backbone=dict(xbn=dict(norm_cfg=dict(type='IN', affine=True))))
