"""ResNet-14, EN, 4 of SGD's 128 samples normalized together, CIFAR-100: paper evalnorm, Figures 2, 4 and 5."""

_base_ = './resnet14_en_b128_cifar100.py'

model = dict(backbone=dict(norm_cfg=dict(virtual_batch_size=4)))
