"""SN in a ResNet on ImageNet, tested by the batch average (paper sn, Section 3.3 and Figure 6).

    _base_ = [A_ROW_WITH_BN, './_base_/sn.py']
    model = _base_.sn

The statistics of BN's part are those of 200 training batches of each GPU, 51,200 images in the (8,32) setting, taken
after the last epoch; the paper speaks of 50k images.
"""

sn = dict(backbone=dict(norm_cfg=dict(type='SN')))
custom_hooks = [dict(type='RecollectHook', batches=200, interval=100, pooled=False)]
