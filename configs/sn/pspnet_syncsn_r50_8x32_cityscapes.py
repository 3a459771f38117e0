"""Paper sn's PSPNet on Cityscapes, SyncSN (8,32): Table VIII, figures of the validation set."""

_base_ = './pspnet_syncsn_r50_8x2_cityscapes.py'

model = dict(backbone=dict(init_cfg=dict(checkpoint='pretrained/resnet50_sn_8x32.pth')))
