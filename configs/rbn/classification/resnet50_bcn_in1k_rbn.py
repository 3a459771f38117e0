"""ResNet-50, BCN, ImageNet: paper rbn, Table 1.

Every gamma starts at 1: the GN in BCN makes a branch whose gamma has moved off 0 as large as any other, in one step.
"""

_base_ = './resnet50_bn_in1k_rbn.py'

model = dict(backbone=dict(norm_cfg=dict(type='BCN'), zero_init_residual=False))
