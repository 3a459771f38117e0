"""Paper sn's PSPNet on Cityscapes, SyncSN (8,2): Table VIII, figures of the validation set."""

_base_ = './pspnet_sn_r50_8x2_cityscapes.py'

model = _base_.segmentor_syncsn
