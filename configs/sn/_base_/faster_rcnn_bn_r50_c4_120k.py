"""Faster R-CNN R-50 C4 as paper sn trains it (Section 4.2.1, setting 1): 4 GPUs with 3 images each, norms live.

The short side is 600 pixels; 80k iterations at 0.01, 40k at 0.001; no weight decay on gamma and beta. The paper follows
jwyang/faster-rcnn.pytorch. Its ResNet-50 settings: a long side of up to 1000 pixels, anchors of 64 to 512 inside the
image, RoIs of 7 x 7 of which conv5 makes 4 x 4, 256 of them an image, 300 in tests, boxes of any score, NMS at 0.3,
smooth L1 losses, stem and first stage fixed when fine-tuned (the authors' later release for Detectron.pytorch fixes
nothing). Warm-up and RoIAlign, in place of its crop and pooling, are mmdet's.
"""

_base_ = [
    '../../_base_/faster_rcnn_r50_c4.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../../_base_/schedule_90k.py',
    '../../_base_/runtime_by_iteration.py',
    '../../_base_/detectron.py',
    '../../_base_/scratch_norm.py',
    './detector_norms.py',
]

detectron = _base_.detectron
model = dict(
    backbone=dict(norm_eval=False),
    rpn_head=dict(detectron.rpn_head, anchor_generator=dict(scales=[4, 8, 16, 32])),
    roi_head=dict(
        shared_head=dict(norm_eval=False),
        bbox_roi_extractor=dict(roi_layer=dict(output_size=7)),
        bbox_head=dict(detectron.roi_head.bbox_head, roi_feat_size=4),
    ),
    train_cfg=dict(detectron.train_cfg, rcnn=dict(sampler=dict(num=256))),
    test_cfg=dict(rpn=dict(max_per_img=300), rcnn=dict(score_thr=0.0, nms=dict(iou_threshold=0.3))),
)

resize = dict(type='Resize', scale=(1000, 600), keep_ratio=True)
train_pipeline = [*_base_.train_pipeline[:2], resize, *_base_.train_pipeline[3:]]
test_pipeline = [_base_.test_pipeline[0], resize, *_base_.test_pipeline[2:]]
train_dataloader = dict(batch_size=3, sampler=dict(type='InfiniteSampler'), dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=120000)
param_scheduler = [_base_.warmup, dict(type='MultiStepLR', by_epoch=False, milestones=[80000], gamma=0.1)]
optim_wrapper = dict(optimizer=dict(lr=0.01), paramwise_cfg=dict(_base_.sn_biases, bias_lr_mult=1))
auto_scale_lr = dict(base_batch_size=12)
