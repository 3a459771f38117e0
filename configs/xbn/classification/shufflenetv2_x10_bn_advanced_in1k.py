"""ShuffleNetV2 1.0x, BN, advanced protocol, ImageNet: paper xbn, Figure A12."""

_base_ = ['../_base_/shufflenetv2.py', '../_base_/cosine_150e.py', '../_base_/advanced.py']

model = _base_.label_smoothing
