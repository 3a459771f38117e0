"""Faster R-CNN, R-101 FPN, IBN-Net-a, which paper xbn compares XBN with (Table 2, ImageNet): no row in its Table 5."""

_base_ = './faster_rcnn_ibn_r50.py'

model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='pretrained/resnet101_ibn_a.pth')))
