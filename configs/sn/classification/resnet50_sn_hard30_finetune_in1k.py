"""ResNet-50, SN with the hard ratios of epoch 30, fine-tuned from there, ImageNet: paper sn, Table III.

The rest of the schedule of resnet50_sn_8x32_in1k.py, from its snapshot.
"""

_base_ = './resnet50_sn_8x32_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(hard=True)))
load_from = 'work_dirs/resnet50_sn_8x32_in1k/epoch_30.pth'
train_cfg = dict(max_epochs=70)
optim_wrapper = dict(optimizer=dict(lr=0.01))
param_scheduler = dict(milestones=[30, 60])
