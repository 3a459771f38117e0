"""ResNet-14 of 4 times the width, EN, 8 of SGD's 128 samples, CIFAR-100: paper evalnorm, Figure 5."""

_base_ = './resnet14_en_b8_cifar100.py'

model = dict(backbone=dict(base_channels=64), head=dict(in_channels=256))
