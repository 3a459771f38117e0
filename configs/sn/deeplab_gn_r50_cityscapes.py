"""Paper sn's DeepLab on Cityscapes, GN: Table VII, figures of the test set.

Starts from Detectron's GN weights; the paper does not say which it used.
"""

_base_ = ['./deeplab_syncbn_r50_cityscapes.py', './_base_/segmentor_norms.py']

model = _base_.segmentor_gn
