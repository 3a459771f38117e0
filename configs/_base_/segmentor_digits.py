"""Segmentors on the digits, from scratch, in minutes on two CPU cores: ResNet-50's blocks, narrow; the recipe.

    _base_ = [MODEL_OF_MMSEG, DATA_SET_OF_MMSEG, 'PATH/configs/_base_/segmentor_digits.py']
    model = _base_.narrow
    train_dataloader = dict(_base_.train_loader, dataset=dict(pipeline=_base_.pipeline))

mmseg's defaults are those of pretrained networks. From scratch three of them keep every digit looking alike for
thousands of iterations, so that background is predicted everywhere: classifiers that start at almost nothing (a
standard deviation of 0.01), which let the layers below learn only digit against background; residual blocks that start
as nothing (zero_init_residual); and dropout of a tenth of the channels.
"""

_base_ = ['./schedule_80k.py', './scratch_norm.py']

head = dict(num_classes=11, dropout_ratio=0, init_cfg=dict(type='Normal', std=1, override=dict(name='conv_seg')))
narrow = dict(
    data_preprocessor=dict(size_divisor=8),
    pretrained=None,
    backbone=dict(base_channels=16, stem_channels=16, zero_init_residual=False, **_base_.scratch_norm),
    decode_head=dict(in_channels=512, channels=64, **head),
    auxiliary_head=dict(in_channels=256, channels=32, **head),
)

# Digits are not flipped: a mirrored 2 is no digit
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_loader = dict(batch_size=4, num_workers=1)
val_loader = dict(batch_size=10, num_workers=1)

max_iters = 1000
train_cfg = dict(max_iters=max_iters, val_interval=500)
default_hooks = dict(checkpoint=dict(interval=500, max_keep_ckpts=2))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0),
    clip_grad=dict(max_norm=5),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=max_iters),
]
auto_scale_lr = dict(enable=True, base_batch_size=8)
randomness = dict(seed=0)
