"""ResNet-14, EN, 2 of SGD's 128 samples normalized together, CIFAR-10: paper evalnorm, Figure 2."""

_base_ = './resnet14_en_b128_cifar10.py'

model = dict(backbone=dict(norm_cfg=dict(virtual_batch_size=2)))
