"""MobileNetV2, BN, ImageNet: paper rbn, Tables 1 and 2.

200 epochs, cosine decay from 0.05 after a warm-up of 5 epochs, weight decay 4e-5. What the warm-up starts from, the
paper does not say: a hundredth.
"""

_base_ = ['../../_base_/mobilenetv2.py', '../../_base_/imagenet.py']

train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=1)
val_cfg = dict()
test_cfg = dict()
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=195, by_epoch=True, begin=5, end=200),
]
optim_wrapper = dict(optimizer=dict(lr=0.05, weight_decay=0.00004))
