"""The advanced protocol of paper xbn for mobile networks (Appendix B.1): 150 epochs, cosine decay, weight decay 4e-5.

It names no rate: 0.1 of its standard protocol.
"""

_base_ = '../../_base_/imagenet.py'

train_cfg = dict(by_epoch=True, max_epochs=150, val_interval=1)
val_cfg = dict()
test_cfg = dict()
param_scheduler = dict(type='CosineAnnealingLR', T_max=150, by_epoch=True, begin=0, end=150)
optim_wrapper = dict(optimizer=dict(weight_decay=0.00004))
