"""Paper sn's PSPNet on Cityscapes, SN (8,32): Table VIII, figures of the validation set."""

_base_ = './pspnet_sn_r50_8x2_cityscapes.py'

model = dict(backbone=dict(init_cfg=dict(checkpoint='pretrained/resnet50_sn_8x32.pth')))
