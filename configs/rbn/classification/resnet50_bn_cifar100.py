"""ResNet-50, BN, CIFAR-100: paper rbn, Table 4, column "No".

The paper says "CIFAR" and how far RBN by stage helps; network, data and schedule are mmpretrain's for CIFAR, with 16
images on each of 8 GPUs.
"""

_base_ = [
    'mmpretrain::_base_/models/resnet50_cifar.py',
    'mmpretrain::_base_/datasets/cifar100_bs16.py',
    'mmpretrain::_base_/schedules/cifar10_bs128.py',
    'mmpretrain::_base_/default_runtime.py',
    '../../_base_/live_norm.py',
]

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
model = dict(head=dict(num_classes=100))
auto_scale_lr = dict(enable=True)
