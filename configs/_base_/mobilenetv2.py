"""mmpretrain's MobileNetV2 1.0x."""

_base_ = 'mmpretrain::_base_/models/mobilenet_v2_1x.py'
