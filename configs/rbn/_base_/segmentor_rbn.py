"""RBN in the backbone and both heads of a segmentor, its statistics over all processes.

_base_ = [YOUR_CONFIG, 'PATH/configs/rbn/_base_/segmentor_rbn.py']
model = _base_.segmentor_rbn
"""

rbn = dict(type='SyncRBN')
segmentor_rbn = dict(backbone=dict(norm_cfg=rbn), decode_head=dict(norm_cfg=rbn), auxiliary_head=dict(norm_cfg=rbn))
