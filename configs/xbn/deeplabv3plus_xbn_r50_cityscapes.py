"""DeepLabV3+, R-50 on Cityscapes, XBN in the backbone.

No paper's table has it; what is not said here is mmseg's. The BN weights are live in training. The heads
keep SyncBN: XBN is a placement in residual blocks, and they have none.
"""
_base_ = [
    f"{__import__('mmseg').__path__[0]}/.mim/configs/"
    'deeplabv3plus/deeplabv3plus_r50-d8_4xb2-80k_cityscapes-512x1024.py',
    '../_base_/live_norm.py',
]

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
model = dict(backbone=dict(type='XBNResNetV1c'))
auto_scale_lr = dict(enable=True, base_batch_size=8)
