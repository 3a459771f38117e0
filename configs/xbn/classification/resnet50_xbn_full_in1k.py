"""ResNet-50, all norms GN with 64 groups, ImageNet: paper xbn, Figure 7, "Full"."""

_base_ = './resnet50_xbn_in1k.py'

model = dict(backbone=dict(xbn=dict(scope='full')))
