"""Paper sn's DeepLab on ADE20K, GN: Table VII.

Starts from Detectron's GN weights; the paper does not say which it used.
"""

_base_ = ['./deeplab_syncbn_r50_ade20k.py', './_base_/segmentor_norms.py']

model = _base_.segmentor_gn
