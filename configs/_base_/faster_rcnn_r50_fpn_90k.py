"""Faster R-CNN, R-50 FPN, COCO 2017, 2 images on each of 8 GPUs, 90k iterations.

The detector is that of the papers' codebases (``detectron.py``), with 1000 proposals an image, which is
maskrcnn-benchmark's 2000 of 2 images.
"""

_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    './schedule_90k.py',
    './runtime_by_iteration.py',
    './detectron.py',
]

model = dict(_base_.detectron, roi_head=dict(_base_.detectron.roi_head, bbox_roi_extractor=_base_.two_samples))

train_dataloader = dict(sampler=dict(type='InfiniteSampler'))
