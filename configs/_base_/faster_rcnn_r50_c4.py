"""Faster R-CNN C4, the model: ResNet-50 without its last stage as backbone, its last stage in the RoI head.

mmdet's, but with torchvision's weights, images and strides in the 3 x 3 convolutions. Rows that train BN, or correct or
freeze its statistics, need these apart from gamma and beta, and Caffe weights may have them folded.
"""

_base_ = 'mmdet::_base_/models/faster-rcnn_r50-caffe-c4.py'

torchvision = dict(
    style='pytorch', norm_cfg=dict(requires_grad=True), init_cfg=dict(checkpoint='torchvision://resnet50')
)
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=torchvision,
    roi_head=dict(shared_head=torchvision),
)
