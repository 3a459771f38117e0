"""Faster R-CNN, R-50 FPN, BN, from scratch: paper xbn, Table 6, row BN, 8 images on each of 8 GPUs.

The codebase keeps 2000 proposals of these 8 images, 250 an image.
"""

_base_ = './faster_rcnn_bn_r50_scratch_8x2.py'

model = dict(train_cfg=dict(rpn_proposal=dict(max_per_img=250)))
train_dataloader = dict(batch_size=8)
auto_scale_lr = dict(base_batch_size=64)
