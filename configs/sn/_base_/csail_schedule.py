"""The optimizer of CSAILVision/semantic-segmentation-pytorch, whose settings paper sn keeps (Section 4.3).

The paper names poly with power 0.9 and auxiliary loss 0.4, and no learning rate: 0.02, weight decay 1e-4 and none on
norms and biases are that code's.
"""

_base_ = ['../../_base_/schedule_80k.py', '../../_base_/live_norm.py']

optim_wrapper = dict(
    optimizer=dict(lr=0.02, weight_decay=1e-4), paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0)
)
auto_scale_lr = dict(enable=True, base_batch_size=16)
