"""The main job on embedded data: XBN Mask R-CNN (ResNet-50's blocks, narrow) on digits on photographs, from scratch.

Minutes on two CPU cores: `tools/dist_train.sh configs/mask_rcnn_xbn_r50_digits.py 2` after `tools/make_digits.py`.
"""

_base_ = './mask_rcnn_xbn_r50_scratch.py'

data_root = 'data/digits/coco/'
metainfo = dict(classes=tuple('0123456789'))
channels = 64  # of the FPN and everything behind it; 256 in the parent
roi_layer = dict(sampling_ratio=1)  # digits are small; the parent's adaptive sampling takes several times as long

model = dict(
    backbone=dict(base_channels=16, xbn=dict(norm_cfg=dict(type='GN', num_groups=16))),  # GN-64 on 64 channels, scaled
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=channels),
    rpn_head=dict(in_channels=channels, feat_channels=channels, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, roi_layer=roi_layer),
        bbox_head=dict(in_channels=channels, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(out_channels=channels, roi_layer=roi_layer),
        mask_head=dict(in_channels=channels, conv_out_channels=channels, num_classes=10),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=250, max_per_img=200), rcnn=dict(sampler=dict(num=40))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)

# Digits are not flipped: a mirrored 2 is no digit
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
dataset = dict(data_root=data_root, metainfo=metainfo)
train_dataloader = dict(
    batch_size=4, num_workers=1, dataset=dict(filter_cfg=dict(min_size=8), pipeline=pipeline, **dataset)
)
val_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(pipeline=pipeline, **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

max_epochs = 4
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-3, weight_decay=0.05, fused=True),
    paramwise_cfg=dict(norm_decay_mult=0),
    clip_grad=dict(max_norm=10),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=8)
randomness = dict(seed=0)
