"""ResNet-14, EN, 8 of SGD's 128 samples normalized together, CIFAR-100: paper evalnorm, Figure 5."""

_base_ = './resnet14_en_b128_cifar100.py'

model = dict(backbone=dict(norm_cfg=dict(virtual_batch_size=8)))
