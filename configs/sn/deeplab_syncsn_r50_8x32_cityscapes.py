"""Paper sn's DeepLab on Cityscapes, SyncSN (8,32): Table VII, figures of the test set."""

_base_ = './deeplab_syncsn_r50_8x2_cityscapes.py'

model = dict(backbone=dict(init_cfg=dict(checkpoint='pretrained/resnet50_sn_8x32.pth')))
