"""ResNet-14, BRN, 128 samples, CIFAR-10: paper evalnorm, Figure 2."""

_base_ = './resnet14_en_b128_cifar10.py'

model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='BRN')))
