"""DeepLabV3+, R-50 on ADE20K, RBN in backbone and heads, synchronized as mmseg's BN is.

No paper's table has it; what is not said here is mmseg's. The BN weights load as an RBN network that computes the same.
"""
_base_ = [
    f"{__import__('mmseg').__path__[0]}/.mim/configs/"
    'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py',
    './_base_/segmentor_rbn.py',
    '../_base_/live_norm.py',
]

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
model = _base_.segmentor_rbn
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0))
auto_scale_lr = dict(enable=True, base_batch_size=16)
