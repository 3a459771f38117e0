"""Cityscapes as paper sn trains on it (Section 4.3): crops of 713 x 713, 400 epochs of batch 16, 2 on each of 8 GPUs.

Trained on train and evaluated on val, whole images at a time; multi-scale tests (``--tta``) average the probabilities
of 1.0, 1.25, 1.5 and 1.75 without flips. What the paper leaves open about augmentation is PSPNet's, which it follows:
scales of 0.5 to 2 and flips.

Table VII's figures are of the *test* set, whose labels only the benchmark's server has. A submission for it, with
cityscapesscripts installed, is what tools/test.py writes with this config of your own:

    _base_ = 'PATH/configs/sn/deeplab_sn_r50_8x2_cityscapes.py'
    test_dataloader = dict(dataset=dict(
        data_prefix=dict(img_path='leftImg8bit/test', seg_map_path=''),
        pipeline=[t for t in _base_.test_pipeline if t['type'] != 'LoadAnnotations']))
    test_evaluator = dict(
        _delete_=True, type='CityscapesMetric', format_only=True, keep_results=True, output_dir='work_dirs/submission')
    tta_pipeline = _base_.tta_pipeline
    tta_pipeline[1]['transforms'].pop(1)  # labels

It also does for multi-scale predictions, with ``--tta``.
"""

_base_ = ['./csail_schedule.py', '../../_base_/cityscapes.py']

crop_size = (713, 713)
train_pipeline = [
    *_base_.train_pipeline[:3],
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale_factor=factor, keep_ratio=True) for factor in (1.0, 1.25, 1.5, 1.75)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))

max_iters = 400 * 2975 // 16  # epochs, training images, batch
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 5)
default_hooks = dict(checkpoint=dict(interval=max_iters // 5))
param_scheduler = [dict(type='PolyLR', eta_min=0, power=0.9, begin=0, end=max_iters, by_epoch=False)]
