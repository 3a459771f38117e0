"""ResNet-50, RBN, CIFAR-100: paper rbn, Table 4, column "All"."""

_base_ = './resnet50_bn_cifar100.py'

model = dict(backbone=dict(norm_cfg=dict(type='RBN')))
