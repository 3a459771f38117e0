"""mmpretrain's ResNet-50: images of torchvision's statistics, a linear classifier of 1000 classes."""

_base_ = 'mmpretrain::_base_/models/resnet50.py'
