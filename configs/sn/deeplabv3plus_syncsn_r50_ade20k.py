"""DeepLabV3+, R-50 on ADE20K, SyncSN in backbone and heads."""

_base_ = './deeplabv3plus_sn_r50_ade20k.py'

model = _base_.segmentor_syncsn
