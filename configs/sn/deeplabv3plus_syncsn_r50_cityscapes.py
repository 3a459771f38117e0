"""DeepLabV3+, R-50 on Cityscapes, SyncSN in backbone and heads."""

_base_ = './deeplabv3plus_sn_r50_cityscapes.py'

model = _base_.segmentor_syncsn
