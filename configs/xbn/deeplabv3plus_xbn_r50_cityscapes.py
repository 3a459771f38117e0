"""DeepLabV3+, R-50 on Cityscapes, XBN in the backbone.

No paper's table has it; what is not said here is mmseg's. The BN weights are live in training. The heads
keep SyncBN: XBN is a placement in residual blocks, and they have none.
"""

_base_ = '../_base_/deeplabv3plus_r50_cityscapes.py'

model = dict(backbone=dict(type='XBNResNetV1c'))
