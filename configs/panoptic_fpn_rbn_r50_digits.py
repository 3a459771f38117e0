"""Panoptic segmentation on embedded data: Panoptic FPN with RBN (ResNet-50's blocks, narrow) on digits on photographs.

Things are the digits, stuff is the two photographs. From scratch; RBN wherever the parent has BN, and in the semantic
branch instead of GN with 32 groups, which 32 channels are too few for.
"""

_base_ = './mask_rcnn_xbn_r50_digits.py'

things, stuff = tuple('0123456789'), ('temple', 'flower')
norm_cfg = dict(type='RBN')
panoptic = dict(num_things_classes=len(things), num_stuff_classes=len(stuff))
model = dict(
    type='PanopticFPNWithInstances',
    backbone=dict(_delete_=True, type='ResNet', depth=50, base_channels=16, norm_cfg=norm_cfg, **_base_.scratch_norm),
    semantic_head=dict(
        type='PanopticFPNHead',
        in_channels=_base_.channels,
        inner_channels=32,
        norm_cfg=norm_cfg,
        loss_seg=dict(type='CrossEntropyLoss', ignore_index=255, loss_weight=0.5),
        **panoptic,
    ),
    panoptic_fusion_head=dict(type='HeuristicFusionHead', **panoptic),
    test_cfg=dict(
        panoptic=dict(
            score_thr=0.6,
            nms=dict(type='nms', iou_threshold=0.5, class_agnostic=True),
            mask_overlap=0.5,
            stuff_area_limit=1024,
        )
    ),
)

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadPanopticAnnotations'),
    *_base_.pipeline[2:],
]
dataset = dict(
    type='CocoPanopticDataset',
    metainfo=dict(classes=things + stuff, thing_classes=things, stuff_classes=stuff),
    pipeline=pipeline,
)
segments = _base_.data_root + 'annotations/panoptic_val2017'
train_dataloader = dict(
    dataset=dict(
        ann_file='annotations/panoptic_train2017.json',
        data_prefix=dict(seg='annotations/panoptic_train2017/'),
        **dataset,
    )
)
val_dataloader = dict(
    dataset=dict(
        ann_file='annotations/panoptic_val2017.json', data_prefix=dict(seg='annotations/panoptic_val2017/'), **dataset
    )
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='CocoPanopticMetric', ann_file=segments + '.json', seg_prefix=segments + '/'),
    _base_.val_evaluator,
]
test_evaluator = val_evaluator
