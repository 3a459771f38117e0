"""Paper sn's DeepLab on ADE20K, SN (8,2): Table VII."""

_base_ = ['./deeplab_syncbn_r50_ade20k.py', './_base_/segmentor_norms.py']

model = _base_.segmentor_sn
