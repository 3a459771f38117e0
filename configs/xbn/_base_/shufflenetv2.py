"""mmpretrain's ShuffleNetV2 1.0x."""

_base_ = 'mmpretrain::_base_/models/shufflenet_v2_1x.py'
