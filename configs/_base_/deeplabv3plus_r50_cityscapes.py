"""mmseg's DeepLabV3+, R-50 on Cityscapes: 512 x 1024, 2 images on each of 4 GPUs, 80k iterations; norms are live."""

_base_ = ['./deeplabv3plus_r50.py', './cityscapes.py', './schedule_80k.py', './live_norm.py']

data_preprocessor = dict(size=_base_.crop_size)
model = dict(data_preprocessor=data_preprocessor)
auto_scale_lr = dict(enable=True, base_batch_size=8)
