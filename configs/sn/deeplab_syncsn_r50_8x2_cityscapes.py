"""Paper sn's DeepLab on Cityscapes, SyncSN (8,2): Table VII, figures of the test set."""

_base_ = './deeplab_sn_r50_8x2_cityscapes.py'

model = _base_.segmentor_syncsn
