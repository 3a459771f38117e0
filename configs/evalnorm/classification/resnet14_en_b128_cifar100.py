"""ResNet-14, EN, 128 samples, CIFAR-100: paper evalnorm, Figures 2 and 4.

Alpha and beta are estimated online. Rows of EMA, as BN, and of rules for alpha and beta are tests of the same training.
"""

_base_ = ['./_base_/resnet14_cifar.py', 'mmpretrain::_base_/datasets/cifar100_bs16.py']

model = dict(head=dict(num_classes=100))
train_dataloader = dict(batch_size=128)
