"""Paper sn's PSPNet on Cityscapes, SyncBN: Table VIII, figures of the validation set."""

_base_ = ['./_base_/pspnet_r50.py', './_base_/csail_cityscapes.py']

model = dict(data_preprocessor=dict(size=_base_.crop_size))
