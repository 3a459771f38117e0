"""Paper sn's DeepLab on ADE20K, SN (8,32): Table VII."""

_base_ = './deeplab_sn_r50_8x2_ade20k.py'

model = dict(backbone=dict(init_cfg=dict(checkpoint='pretrained/resnet50_sn_8x32.pth')))
