"""ImageNet: crops of 224 pixels, flips, SGD at 0.1 for a batch of 256, 32 images on each of 8 GPUs; norms are live.

The five papers follow He et al. here: random crops and flips in training, the center crop of a short side of 256 in
tests, momentum 0.9, weight decay 1e-4 on all parameters, a rate proportional to the batch. What they leave open is
mmpretrain's: crops of 8 to 100 % of an image, initialization, residual blocks whose last gamma starts at 0 (in papers
sn and bgn all start at 1: ``resnet50_gamma1.py``).
``imagenet_GPUSxIMAGES.py`` are other batches of the same recipe, ``step_EPOCHSe.py`` schedules.
"""

_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    'mmpretrain::_base_/default_runtime.py',
    './live_norm.py',
]

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.0001))
auto_scale_lr = dict(enable=True, base_batch_size=256)
