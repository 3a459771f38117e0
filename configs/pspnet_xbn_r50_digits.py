"""Semantic segmentation on embedded data: XBN PSPNet (ResNet-50's blocks, narrow) on digits on photographs.

The data are read as ADE20K is, under its first 11 class names, which mmseg does not let go: 'wall' is the background,
'building' to 'cabinet' are the digits 0 to 9.
"""

_base_ = ['./_base_/pspnet_r50.py', './_base_/ade20k.py', './_base_/segmentor_digits.py']

narrow = _base_.narrow
norm_cfg = dict(type='BN')
model = dict(
    narrow,
    backbone=dict(
        narrow.backbone, type='XBNResNetV1c', norm_cfg=norm_cfg, xbn=dict(norm_cfg=dict(type='GN', num_groups=16))
    ),
    decode_head=dict(narrow.decode_head, norm_cfg=norm_cfg),
    auxiliary_head=dict(narrow.auxiliary_head, norm_cfg=norm_cfg),
)

data = dict(
    data_root='data/digits/ade',
    metainfo=dict(
        classes=(
            'wall',
            'building',
            'sky',
            'floor',
            'tree',
            'ceiling',
            'road',
            'bed ',
            'windowpane',
            'grass',
            'cabinet',
        )
    ),
    pipeline=_base_.pipeline,
)
train_dataloader = dict(_base_.train_loader, dataset=data)
val_dataloader = dict(_base_.val_loader, dataset=data)
test_dataloader = val_dataloader
