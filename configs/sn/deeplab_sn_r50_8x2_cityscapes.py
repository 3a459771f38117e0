"""Paper sn's DeepLab on Cityscapes, SN (8,2): Table VII, figures of the test set."""

_base_ = ['./deeplab_syncbn_r50_cityscapes.py', './_base_/segmentor_norms.py']

model = _base_.segmentor_sn
