"""ResNet-50, XBN, label smoothing, mixup and cosine decay, ImageNet: paper xbn, Table 3."""

_base_ = ['./resnet50_xbn_in1k.py', '../_base_/advanced.py']

model = dict(_base_.label_smoothing, **_base_.mixup)
param_scheduler = _base_.cosine
