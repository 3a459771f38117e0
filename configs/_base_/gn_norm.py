"""GN with 32 groups: in a ResNet-50 from Detectron's ImageNet weights, and in FPN and box head (4 convs and 1 fc).

_base_ = [YOUR_CONFIG, 'PATH/configs/_base_/gn_norm.py']
model = dict(data_preprocessor=_base_.gn_pixels, backbone=_base_.gn_norm)
model = _base_.gn_heads
"""

gn = dict(type='GN', num_groups=32)
gn_norm = dict(norm_cfg=gn, init_cfg=dict(checkpoint='open-mmlab://detectron/resnet50_gn'))
gn_pixels = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)  # of these weights
gn_heads = dict(neck=dict(norm_cfg=gn), roi_head=dict(bbox_head=dict(type='Shared4Conv1FCBBoxHead', norm_cfg=gn)))
