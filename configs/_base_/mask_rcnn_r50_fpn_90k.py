"""Mask R-CNN, R-50 FPN, COCO 2017, 2 images on each of 8 GPUs, 90k iterations.

mmdet's detector in whatever the papers do not name: L1 losses, RoIAlign with adaptive sampling, 1000 proposals.
"""
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'mmdet::_base_/datasets/coco_instance.py', './schedule_90k.py',
    './runtime_by_iteration.py'
]

train_dataloader = dict(sampler=dict(type='InfiniteSampler'))
