"""Faster R-CNN R-50 C4 with EN, as paper evalnorm trains it (Section 4.3): COCO trainval35k, 600 x 600, 64 epochs.

One process: its N images are the SGD batch and the normalization batch of the backbone, their 64 N RoIs that of conv5
in the RoI head. ``auto_scale_lr`` makes the rate 0.015 N / 8. The paper's asynchronous SGD with 11 workers cannot be
reproduced here: no gradient of ours is stale, and an epoch has one worker's steps.

Alpha and beta are estimated online. For the paper's EMA rows turn EN into BN in tests, by --cfg-options:
    model.backbone.norm_cfg._delete_=True model.backbone.norm_cfg.type=BN
    model.roi_head.shared_head.norm_cfg._delete_=True model.roi_head.shared_head.norm_cfg.type=BN

trainval35k is train2014 and valminusminival2014, minival the rest of val2014, by the annotation files that are common
for them; the same images are train2017 and val2017. They are 118k where the paper says about 75k. What else the paper
leaves open is mmdet's: warm-up, weight decay, anchors, losses. Pretrained weights are torchvision's, with the stride in
the 3 x 3 convolutions; the paper's are He et al.'s first ResNet, with the stride in the 1 x 1.
"""

_base_ = [
    '../../_base_/faster_rcnn_r50_c4.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../../_base_/live_norm.py',
]

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
norm_cfg = dict(type='EN', mode='online')
model = dict(
    backbone=dict(norm_cfg=norm_cfg, **_base_.live_norm),
    roi_head=dict(shared_head=dict(norm_cfg=norm_cfg, norm_eval=False)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=300)), rpn_proposal=dict(max_per_img=300), rcnn=dict(sampler=dict(num=64))
    ),
    test_cfg=dict(rpn=dict(max_per_img=300)),
)

resize = dict(type='Resize', scale=(600, 600), keep_ratio=False)
train_pipeline = [*_base_.train_pipeline[:2], resize, *_base_.train_pipeline[3:]]
test_pipeline = [_base_.test_pipeline[0], resize, *_base_.test_pipeline[2:]]

part = dict(_base_.train_dataloader.dataset, pipeline=train_pipeline)
train2014 = dict(part, ann_file='annotations/instances_train2014.json', data_prefix=dict(img='train2014/'))
valminusminival2014 = dict(
    part, ann_file='annotations/instances_valminusminival2014.json', data_prefix=dict(img='val2014/')
)
train_dataloader = dict(
    batch_size=8, dataset=dict(_delete_=True, type='ConcatDataset', datasets=[train2014, valminusminival2014])
)
minival = 'annotations/instances_minival2014.json'
val_dataloader = dict(dataset=dict(ann_file=minival, data_prefix=dict(img='val2014/'), pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=_base_.data_root + minival)
test_evaluator = val_evaluator

max_epochs = 64
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=4, max_keep_ckpts=2))
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True),
]
optim_wrapper = dict(optimizer=dict(lr=0.015))
auto_scale_lr = dict(enable=True, base_batch_size=8)
