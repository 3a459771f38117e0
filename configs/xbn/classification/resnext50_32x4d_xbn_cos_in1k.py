"""ResNeXt-50 32x4d, XBN, cosine decay, ImageNet: paper xbn, Table A1."""

_base_ = ['./resnext50_32x4d_xbn_in1k.py', '../_base_/advanced.py']

param_scheduler = _base_.cosine
