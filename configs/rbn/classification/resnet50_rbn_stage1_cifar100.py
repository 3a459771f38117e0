"""ResNet-50, RBN in stage 1 alone, CIFAR-100: paper rbn, Table 4, column S.1."""

_base_ = './resnet50_bn_cifar100.py'

model = dict(backbone=dict(type='XBNResNet_CIFAR', xbn=dict(scope='full', stages=(0,), norm_cfg=dict(type='RBN'))))
