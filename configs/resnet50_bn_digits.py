"""Pretraining on embedded data: a classifier with ResNet-50's blocks, narrow, and BN, on single digits on photographs.

Twelve epochs of 6,000 images, after `tools/make_digits.py data/digits_imagenet --layouts imagenet`.
"""

_base_ = ['mmpretrain::_base_/models/resnet50.py', 'mmpretrain::_base_/default_runtime.py', './_base_/live_norm.py']

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
data_preprocessor = dict(num_classes=10, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(backbone=dict(base_channels=16, stem_channels=16), head=dict(num_classes=10, in_channels=512, topk=(1,)))

# Digits are not flipped: a mirrored 2 is no digit
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
dataset = dict(type='CustomDataset', data_root='data/digits_imagenet', pipeline=pipeline)
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    dataset=dict(data_prefix=dict(img_path='train'), **dataset),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=1,
    dataset=dict(data_prefix=dict(img_path='val'), **dataset),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy')
test_evaluator = val_evaluator

max_epochs = 12
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=4)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05, fused=True), paramwise_cfg=dict(norm_decay_mult=0)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(max_keep_ckpts=2))
auto_scale_lr = dict(enable=True, base_batch_size=64)
randomness = dict(seed=0)
