"""Mask R-CNN, X-101-32x8d FPN, of paper xbn's Tables 4 and A5: 1 image on each of 8 GPUs, 180k iterations at 0.01.

The paper names iterations and batch; the rate is that of the codebase for this batch, and so are the 2000 proposals.
BN's weights are torchvision's.
"""

_base_ = '../../_base_/mask_rcnn_r50_fpn_180k.py'

model = dict(
    backbone=dict(
        type='ResNeXt', depth=101, groups=32, base_width=8, init_cfg=dict(checkpoint='torchvision://resnext101_32x8d')
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=2000)),
)
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(optimizer=dict(lr=0.01))
auto_scale_lr = dict(base_batch_size=8)
