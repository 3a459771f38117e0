"""DeepLabV3+, R-50 on ADE20K, SN in backbone and heads.

No paper's table has it; what is not said here is mmseg's. The 7 x 7 stem is that of the SN weights.
"""

_base_ = ['../_base_/deeplabv3plus_r50_ade20k.py', './_base_/segmentor_norms.py']

model = _base_.segmentor_sn
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0))
