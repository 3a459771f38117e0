"""ADE20K as paper sn trains on it (Section 4.3): 450 x 450, 100k iterations of 2 images on each of 8 GPUs.

What the paper leaves open is CSAILVision/semantic-segmentation-pytorch's, whose "other settings" it keeps: single-scale
tests have a short side of 450 pixels (a long one of at most 1000), multi-scale ones (``--tta``) average the
probabilities of 300, 400, 500 and 600 without flips. Training resizes to a square, which is how the paper puts it; the
script that the authors released takes short sides of 300 to 575 and keeps the ratio.
"""

_base_ = ['./csail_schedule.py', '../../_base_/ade20k.py']

crop_size = (450, 450)
train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(type='Resize', scale=crop_size, keep_ratio=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(type='Resize', scale=(1000, 450), keep_ratio=True),
    *_base_.test_pipeline[2:],
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(1000, side), keep_ratio=True) for side in (300, 400, 500, 600)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

max_iters = 100000
train_cfg = dict(max_iters=max_iters, val_interval=10000)
default_hooks = dict(checkpoint=dict(interval=10000))
param_scheduler = [dict(type='PolyLR', eta_min=0, power=0.9, begin=0, end=max_iters, by_epoch=False)]
