"""Paper sn's PSPNet on Cityscapes, GN: Table VIII, figures of the validation set.

Starts from Detectron's GN weights; the paper does not say which it used.
"""

_base_ = ['./pspnet_syncbn_r50_cityscapes.py', './_base_/segmentor_norms.py']

model = _base_.segmentor_gn
