"""ResNet-50, FRN with thresholds (TLU) in the place of all ReLUs, ImageNet: paper rbn, Table 1."""

_base_ = './resnet50_bn_in1k_rbn.py'

frn = dict(type='FRN', tlu=True)
model = dict(backbone=dict(type='XBNResNet', xbn=dict(scope='full', norm_cfg=frn)))
