"""ResNet-14, EN, 64 of SGD's 128 samples normalized together, CIFAR-100: paper evalnorm, Figures 2 and 4."""

_base_ = './resnet14_en_b128_cifar100.py'

model = dict(backbone=dict(norm_cfg=dict(virtual_batch_size=64)))
