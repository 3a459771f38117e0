"""ResNet-50, RBN in stage 3 alone, CIFAR-100: paper rbn, Table 4, column S.3."""

_base_ = './resnet50_bn_cifar100.py'

model = dict(backbone=dict(type='XBNResNet_CIFAR', xbn=dict(scope='full', stages=(2,), norm_cfg=dict(type='RBN'))))
