"""ResNet-50 of which every gamma starts at 1; mmpretrain's is 0 at the end of each residual block."""

_base_ = './resnet50.py'

model = dict(backbone=dict(zero_init_residual=False))
