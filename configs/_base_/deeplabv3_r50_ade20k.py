"""mmseg's DeepLabV3, R-50 on ADE20K: 512 x 512, 4 images on each of 4 GPUs, 80k iterations; norms are live."""

_base_ = ['./deeplabv3_r50.py', './ade20k.py', './schedule_80k.py', './live_norm.py']

data_preprocessor = dict(size=_base_.crop_size)
model = dict(
    data_preprocessor=data_preprocessor, decode_head=dict(num_classes=150), auxiliary_head=dict(num_classes=150)
)
auto_scale_lr = dict(enable=True, base_batch_size=16)
