"""ShuffleNetV2 1.0x, BN, standard protocol, ImageNet: paper xbn, Figure A12."""

_base_ = ['../_base_/shufflenetv2.py', '../../_base_/imagenet.py', '../../_base_/step_100e.py']
