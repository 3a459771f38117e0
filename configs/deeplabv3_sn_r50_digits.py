"""Semantic segmentation on embedded data: DeepLabV3 with SyncSN (ResNet-50's blocks, narrow) on digits on photographs.

The data are read as Cityscapes is, under its first 11 class names, which mmseg does not let go: 'road' is the
background, 'sidewalk' to 'sky' are the digits 0 to 9. ASPP's dilations are for maps of 16 x 16, those of the parent for
64 x 128.
"""

_base_ = ['./_base_/deeplabv3_r50.py', './_base_/cityscapes.py', './_base_/segmentor_digits.py']

narrow = _base_.narrow
norm_cfg = dict(type='SyncSN')
model = dict(
    narrow,
    backbone=dict(narrow.backbone, norm_cfg=norm_cfg),
    decode_head=dict(narrow.decode_head, norm_cfg=norm_cfg, dilations=(1, 2, 4, 6)),
    auxiliary_head=dict(narrow.auxiliary_head, norm_cfg=norm_cfg),
)

data = dict(
    data_root='data/digits/cityscapes',
    metainfo=dict(
        classes=(
            'road',
            'sidewalk',
            'building',
            'wall',
            'fence',
            'pole',
            'traffic light',
            'traffic sign',
            'vegetation',
            'terrain',
            'sky',
        )
    ),
    pipeline=_base_.pipeline,
)
train_dataloader = dict(_base_.train_loader, dataset=data)
val_dataloader = dict(_base_.val_loader, dataset=data)
test_dataloader = val_dataloader
