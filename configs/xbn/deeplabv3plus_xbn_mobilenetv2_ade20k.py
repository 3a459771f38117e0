"""DeepLabV3+, MobileNetV2 on ADE20K, XBN in the backbone: the blocks of paper xbn, Figure A10.

The paper measured them in ImageNet classification only (Table A3); what is not said here is mmseg's. The BN weights are
live in training.
"""

_base_ = [
    f'{__import__("mmseg").__path__[0]}/.mim/configs/'
    'mobilenet_v2/mobilenet-v2-d8_deeplabv3plus_4xb4-160k_ade20k-512x512.py',
    '../_base_/live_norm.py',
]

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
model = dict(backbone=dict(type='XBNMobileNetV2'))
auto_scale_lr = dict(enable=True, base_batch_size=16)
