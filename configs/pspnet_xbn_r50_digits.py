"""Semantic segmentation on embedded data: XBN PSPNet (ResNet-50's blocks, narrow) on digits on photographs.

Its bases are file paths and not `mmseg::...`, which mmseg's own tools cannot resolve with the onedl set.
"""
_base_ = [
    f"{__import__('mmseg').__path__[0]}/.mim/configs/_base_/{part}.py"
    for part in ('models/pspnet_r50-d8', 'datasets/ade20k', 'schedules/schedule_20k', 'default_runtime')
] + ['./_base_/scratch_norm.py']

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
norm_cfg = dict(type='BN')
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    pretrained=None,
    backbone=dict(
        type='XBNResNetV1c',
        base_channels=16,
        stem_channels=16,
        norm_cfg=norm_cfg,
        xbn=dict(norm_cfg=dict(type='GN', num_groups=16)),
        **_base_.scratch_norm),
    decode_head=dict(in_channels=512, channels=64, num_classes=11, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=256, channels=32, num_classes=11, norm_cfg=norm_cfg))

# Digits are not flipped: a mirrored 2 is no digit
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
dataset = dict(
    type='BaseSegDataset',
    data_root='data/digits/ade',
    reduce_zero_label=True,
    metainfo=dict(classes=('background', *'0123456789')),
    pipeline=pipeline)
train_dataloader = dict(batch_size=4, num_workers=1, dataset=dataset)
val_dataloader = dict(batch_size=1, num_workers=1, dataset=dataset)
test_dataloader = val_dataloader

max_iters = 1000
train_cfg = dict(max_iters=max_iters, val_interval=500)
default_hooks = dict(checkpoint=dict(interval=500, max_keep_ckpts=2))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.05), paramwise_cfg=dict(norm_decay_mult=0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', eta_min=1e-5, power=0.9, begin=100, end=max_iters, by_epoch=False),
]
randomness = dict(seed=0)
