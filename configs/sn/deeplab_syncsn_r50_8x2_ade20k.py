"""Paper sn's DeepLab on ADE20K, SyncSN (8,2): Table VII."""

_base_ = './deeplab_sn_r50_8x2_ade20k.py'

model = _base_.segmentor_syncsn
