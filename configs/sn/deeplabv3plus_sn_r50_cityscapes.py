"""DeepLabV3+, R-50 on Cityscapes, SN in backbone and heads.

No paper's table has it; what is not said here is mmseg's. The 7 x 7 stem is that of the SN weights.
"""
_base_ = [
    f"{__import__('mmseg').__path__[0]}/.mim/configs/"
    'deeplabv3plus/deeplabv3plus_r50-d8_4xb2-80k_cityscapes-512x1024.py',
    './_base_/segmentor_norms.py',
    '../_base_/live_norm.py',
]

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
model = _base_.segmentor_sn
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0))
auto_scale_lr = dict(enable=True, base_batch_size=8)
