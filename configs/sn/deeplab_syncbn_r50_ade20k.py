"""Paper sn's DeepLab on ADE20K, SyncBN: Table VII."""

_base_ = ['./_base_/deeplab_r50.py', './_base_/csail_ade20k.py']

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
