"""Paper sn's DeepLab on Cityscapes, SyncBN: Table VII, figures of the test set."""

_base_ = ['./_base_/deeplab_r50.py', './_base_/csail_cityscapes.py']

model = dict(data_preprocessor=dict(size=_base_.crop_size))
