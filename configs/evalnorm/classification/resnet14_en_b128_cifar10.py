"""ResNet-14, EN, 128 samples, CIFAR-10: paper evalnorm, Figure 2.

Alpha and beta are estimated online. Its row of EMA is a test of the same training, as BN.
"""

_base_ = ['./_base_/resnet14_cifar.py', 'mmpretrain::_base_/datasets/cifar10_bs16.py']

train_dataloader = dict(batch_size=128)
