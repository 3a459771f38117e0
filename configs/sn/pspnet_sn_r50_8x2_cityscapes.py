"""Paper sn's PSPNet on Cityscapes, SN (8,2): Table VIII, figures of the validation set."""

_base_ = ['./pspnet_syncbn_r50_cityscapes.py', './_base_/segmentor_norms.py']

model = _base_.segmentor_sn
