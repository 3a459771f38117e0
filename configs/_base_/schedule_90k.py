"""The schedule of Detectron and maskrcnn-benchmark by iterations: 1x for 16 images, which is 90k.

SGD at 0.02, divided by 10 after 60k and 80k iterations, after a warm-up of 500 iterations from a third. mmdet's 1x is
12 epochs, 88k iterations; the papers count iterations. In both codes biases learn at twice the rate and do not decay,
in maskrcnn-benchmark those of norms as well.
"""

train_cfg = dict(type='IterBasedTrainLoop', max_iters=90000, val_interval=10000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

warmup = dict(type='LinearLR', start_factor=1 / 3, by_epoch=False, begin=0, end=500)
param_scheduler = [warmup, dict(type='MultiStepLR', by_epoch=False, milestones=[60000, 80000], gamma=0.1)]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001),
    paramwise_cfg=dict(custom_keys=dict(bias=dict(lr_mult=2, decay_mult=0))),
)
auto_scale_lr = dict(enable=True, base_batch_size=16)
