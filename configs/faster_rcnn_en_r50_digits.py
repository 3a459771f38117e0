"""EvalNorm on embedded data: Faster R-CNN (ResNet-50's blocks, narrow) from scratch, as paper evalnorm's Table 2 (a).

EN in backbone and FPN and nowhere else: the normalization batch is the images of a process. EN trains as BN does, to
the bit, and estimates alpha and beta on the way. Images are smaller than in the parent, for a CPU.
"""

_base_ = './mask_rcnn_xbn_r50_digits.py'

norm_cfg = dict(type='EN', mode='online')
model = dict(
    type='FasterRCNN',
    backbone=dict(_delete_=True, type='ResNet', depth=50, base_channels=16, norm_cfg=norm_cfg, **_base_.scratch_norm),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(mask_roi_extractor=None, mask_head=None),
)

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    *_base_.pipeline[3:],
]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
