"""ResNet-50, ILM over GN with 32 groups, ImageNet: paper rbn, Table 1.

Every weight starts at 1, as in ILM's code: one of 0 would leave a gamma of about 0.5, from the sigmoid beside it.
"""

_base_ = './resnet50_bn_in1k_rbn.py'

model = dict(backbone=dict(norm_cfg=dict(type='ILM'), zero_init_residual=False))
