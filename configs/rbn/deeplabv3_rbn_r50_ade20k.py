"""DeepLabV3, R-50 on ADE20K, RBN in backbone and heads, synchronized as mmseg's BN is.

No paper's table has it; what is not said here is mmseg's. The BN weights load as an RBN network that computes the same.
"""

_base_ = ['../_base_/deeplabv3_r50_ade20k.py', './_base_/segmentor_rbn.py']

model = _base_.segmentor_rbn
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0))
