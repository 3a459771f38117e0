"""Hyperparameters of every row, against what the papers say; from the papers' text, not from the configs."""

import re

import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmnorm.norms import NORMS
from mmnorm.zoo import load_zoo

from .configs import config

# Learning rate, length (iterations; epochs below 1000), its steps, images of all GPUs and of each
TRAINING = {
    'xbn Table 4 R-50': (0.02, 90000, [60000, 80000], 16, 2),
    'xbn Table 4 X-101-32x8d': (0.01, 180000, [120000, 160000], 8, 1),
    'xbn Table 5 R-50': (0.02, 90000, [60000, 80000], 16, 2),
    'sn Table IV R-50': (0.01, 120000, [80000], 12, 3),
    'sn Table V R-50': (0.02, 90000, [60000, 80000], 16, 2),
    'sn Table VI R-50': (0.02, 180000, [120000, 160000], 16, 2),
    'sn Table VII R-50 ADE20K': (0.02, 100000, [], 16, 2),
    'sn Table VII R-50 Cityscapes': (0.02, 74375, [], 16, 2),  # 400 epochs of 2,975 images
    'sn Table VIII R-50 Cityscapes': (0.02, 74375, [], 16, 2),
    **{f'rbn Table {table} R-{depth}': (0.02, 12, [8, 11], 16, 2) for table in (5, 6, 7) for depth in (50, 101)},
}
ZOO = load_zoo()
ROWS = {name: model for name, model in ZOO.items() if model.published and model.task != 'classification'}
CLASSIFIERS = {name: model for name, model in ZOO.items() if model.task == 'classification' and model.published}


def training(cfg):
    """What TRAINING has of a config."""
    loop = cfg.train_cfg
    steps = [step for scheduler in cfg.param_scheduler for step in scheduler.get('milestones', [])]
    return (
        cfg.optim_wrapper.optimizer.lr,
        loop.get('max_iters') or loop.max_epochs,
        steps,
        cfg.auto_scale_lr.base_batch_size,
        cfg.train_dataloader.batch_size,
    )


@pytest.mark.parametrize(
    'name',
    [
        name
        for name, model in ROWS.items()
        if 'Table 6' not in model.published[0].table or model.paper == 'rbn'
        if model.paper != 'evalnorm'
    ],
)
def test_schedule_and_batch(name):
    model = ROWS[name]
    table = f'{model.published[0].table.split(",")[0]} {model.backbone}'
    cfg = config(model.path)
    assert training(cfg) == TRAINING.get(table) or training(cfg) == TRAINING[f'{table} {model.data}']
    assert cfg.optim_wrapper.optimizer.momentum == 0.9 and cfg.optim_wrapper.optimizer.weight_decay == 1e-4


@pytest.mark.parametrize('images', [2, 4, 8])
def test_from_scratch_of_xbn(images):
    rows = [
        model
        for model in ROWS.values()
        if model.published[0].table == 'xbn Table 6' and model.name.endswith(f'8x{images}')
    ]
    assert [row.norm for row in rows] == ['BN', 'GN', 'XBN-GN']
    for row in rows:
        assert training(config(row.path)) == (0.02, 90000, [60000, 80000], 8 * images, images)
        assert row.sweep == {'optim_wrapper.optimizer.lr': [0.01, 0.02, 0.04]}


@pytest.mark.parametrize('name', [name for name, model in ROWS.items() if model.paper == 'evalnorm'])
def test_evalnorm(name):
    cfg, rows = config(ROWS[name].path), ROWS[name].published
    images = int(re.search(r'(\d) images', rows[0].row)[1])
    assert all(f'{images} images' in row.row for row in rows) and cfg.train_dataloader.batch_size == images
    # auto_scale_lr makes it 0.015 N / 8 on one process
    assert training(cfg)[:2] == (0.015, 64) and cfg.auto_scale_lr == dict(enable=True, base_batch_size=8)
    assert any(scheduler.type == 'CosineAnnealingLR' and scheduler.end == 64 for scheduler in cfg.param_scheduler)
    train, test = cfg.model.train_cfg, cfg.model.test_cfg
    assert (train.rpn.sampler.num, train.rcnn.sampler.num, test.rpn.max_per_img) == (300, 64, 300)
    resizes = [step.scale for step in cfg.test_dataloader.dataset.pipeline if step.type == 'Resize']
    assert resizes == [(600, 600)] and 'minival' in cfg.test_dataloader.dataset.ann_file


@pytest.mark.parametrize('name', [name for name, model in ROWS.items() if model.paper == 'sn'])
def test_norms_of_sn(name):
    cfg = config(ROWS[name].path)
    assert cfg.optim_wrapper.paramwise_cfg.norm_decay_mult == 0
    norm = cfg.model.backbone.norm_cfg
    if ROWS[name].norm in ('SN', 'SyncSN') and norm.type not in ('FrozenBN', 'GN'):  # some have SN in the heads alone
        assert norm.type == ROWS[name].norm and norm.momentum == 0.003
    size = re.search(r'_8x(\d+)_', name)
    if size:
        assert cfg.model.backbone.init_cfg.checkpoint == f'pretrained/resnet50_sn_8x{size[1]}.pth'
        assert ROWS[name].published[0].row == f'{ROWS[name].norm} (8,{size[1]})'


@pytest.mark.parametrize(
    'name', [name for name, model in ROWS.items() if model.data == 'COCO' if model.paper in ('xbn', 'sn')]
)
def test_detectors_are_those_of_the_codebases(name):
    cfg = config(ROWS[name].path).model
    losses = cfg.rpn_head.loss_bbox, cfg.roi_head.bbox_head.loss_bbox
    assert [loss.type for loss in losses] == ['SmoothL1Loss'] * 2 and [loss.beta for loss in losses] == [1 / 9, 1]
    assert cfg.train_cfg.rpn.allowed_border == 0 and not cfg.train_cfg.rcnn.assigner.match_low_quality
    if 'neck' in cfg:  # FPN
        extractors = [value for key, value in cfg.roi_head.items() if key.endswith('_roi_extractor')]
        assert {extractor.roi_layer.sampling_ratio for extractor in extractors} == {2}
        assert len(extractors) == 1 + (ROWS[name].task == 'instance segmentation')
        # maskrcnn-benchmark's are of all images of a GPU together
        images = config(ROWS[name].path).train_dataloader.batch_size if ROWS[name].paper == 'xbn' else 1
        assert cfg.train_cfg.rpn_proposal.max_per_img == 2000 // images


@pytest.mark.parametrize(
    'name, rates',
    [
        ('faster_rcnn_gn_r50', {'conv.bias': 2, 'norm.bias': 2}),  # in maskrcnn-benchmark whatever is called bias
        ('faster_rcnn_gn_r50_gn_head', {'conv.bias': 2, 'norm.bias': 1}),
        (
            'faster_rcnn_gn_r50_c4',
            {'conv.bias': 1, 'norm.bias': 1},
        ),  # res50.yml of faster-rcnn.pytorch: DOUBLE_BIAS False
    ],
)
def test_biases(name, rates):
    cfg = config(ZOO[name].path).optim_wrapper
    model = nn.ModuleDict(dict(conv=nn.Conv2d(2, 2, 1), norm=nn.GroupNorm(1, 2)))
    of = {group['params'][0]: group for group in build_optim_wrapper(model, cfg).param_groups}
    groups = {parameter: of[tensor] for parameter, tensor in model.named_parameters()}
    found = {parameter: group['lr'] / cfg.optimizer.lr for parameter, group in groups.items()}
    assert found == {'conv.weight': 1, 'norm.weight': 1, **rates}
    decays = {parameter: group['weight_decay'] for parameter, group in groups.items()}
    of_weight = 1e-4 if ZOO[name].paper == 'xbn' else 0
    assert decays == {'conv.weight': 1e-4, 'conv.bias': 0, 'norm.weight': of_weight, 'norm.bias': 0}


@pytest.mark.parametrize(
    'name',
    [
        name
        for name, model in ZOO.items()
        if model.task != 'classification' and (model.paper == 'bgn' or 'scratch' in name and model.paper == 'sn')
    ],
)
def test_from_scratch_has_no_weights(name):
    cfg = config(ZOO[name].path)
    assert not cfg.model.backbone.get('init_cfg') and cfg.model.backbone.frozen_stages == -1
    assert ZOO[name].paper != 'bgn' or cfg.train_dataloader.batch_size == 2


# classification


def recipe(cfg):
    """Epochs, the epochs after which the rate falls or 'cosine', the rate of a batch of 256, and weight decay."""
    schedulers = cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer.type == 'SGD' and optimizer.momentum == 0.9 and 'paramwise_cfg' not in cfg.optim_wrapper
    assert cfg.auto_scale_lr.enable
    return (
        cfg.train_cfg.max_epochs,
        schedulers[-1].get('milestones', 'cosine'),
        pytest.approx(optimizer.lr * 256 / cfg.auto_scale_lr.base_batch_size),
        optimizer.weight_decay,
    )


def of_paper(paper):
    return pytest.mark.parametrize('name', [name for name, model in CLASSIFIERS.items() if model.paper == paper])


@of_paper('xbn')
def test_xbn_on_imagenet(name):
    """Sections 5.2.1 and 5.2.2, Appendix B.1."""
    cfg, advanced, strategies = config(CLASSIFIERS[name].path), 'advanced' in name, name.split('_')
    cosine = advanced or 'cos' in strategies
    assert recipe(cfg) == (
        150 if advanced else 100,
        'cosine' if cosine else [30, 60, 90],
        0.1,
        4e-5 if advanced else 1e-4,
    )
    assert cfg.auto_scale_lr.base_batch_size == 256
    smooth = 'ls' in strategies or advanced and 'shufflenetv2' in name
    assert cfg.model.head.loss.get('label_smooth_val') == (0.1 if smooth else None)
    augments = cfg.model.get('train_cfg', {}).get('augments')
    assert augments == (dict(type='Mixup', alpha=0.2) if 'mixup' in strategies else None)


@pytest.mark.parametrize('name', [name for name in CLASSIFIERS if re.search(r'_\dx\d+_', name)])
def test_batches_of_so_many_gpus_and_images(name):
    """Papers sn (Section 4.1.1), bgn (Implementation details) and evalnorm (Section 4.2)."""
    model, (gpus, images) = CLASSIFIERS[name], map(int, re.search(r'_(\d)x(\d+)_', name).groups())
    cfg = config(model.path)
    epochs, schedule = dict(sn=(100, [30, 60, 90]), bgn=(120, [30, 60, 90]), evalnorm=(60, 'cosine'))[model.paper]
    assert recipe(cfg) == (epochs, schedule, 0.1, 1e-4)
    assert (cfg.auto_scale_lr.base_batch_size, cfg.train_dataloader.batch_size) == (gpus * images, images)
    settings = {'sn': f'({gpus},{images})', 'bgn': f'batch size {images}', 'evalnorm': f'{images} samples/GPU'}
    assert all(settings[model.paper] in row.row for row in model.published if row.table != 'sn Table III')
    if model.paper == 'bgn':
        rates = {128: 0.4, 64: 0.2, 32: 0.1, 16: 0.05, 8: 0.025, 4: 0.0125, 2: 0.00625}
        assert cfg.optim_wrapper.optimizer.lr == rates[images] and gpus == 8
    # "initialized as 1": evalnorm does not say
    assert cfg.model.backbone.get('zero_init_residual', True) == (model.paper == 'evalnorm')


@pytest.mark.parametrize('name', [name for name in CLASSIFIERS if name.startswith('resnet14_')])
def test_evalnorm_on_cifar(name):
    """Section 4.1: 128,000 updates by batches of 128, of which so many samples are normalized together."""
    cfg, model = config(CLASSIFIERS[name].path), CLASSIFIERS[name]
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (128, 128)
    assert (cfg.optim_wrapper.optimizer.lr, cfg.param_scheduler.type) == (0.1, 'CosineAnnealingLR')
    updates = -(-50_000 // 128)  # of an epoch
    assert abs(cfg.train_cfg.max_epochs * updates - 128_000) < updates / 2
    assert cfg.param_scheduler.T_max == cfg.param_scheduler.end == cfg.train_cfg.max_epochs
    size = int(re.search(r'_b(\d+)_', name)[1])
    norm = cfg.model.backbone.norm_cfg
    assert norm.get('virtual_batch_size', 128) == size
    assert all(row.row.endswith(f' {size} samples') for row in model.published)
    assert (norm.get('r_max', 2), norm.get('d_max', 1)) == (2, 1)
    width = int(re.search(r'_w(\d)_|$', name)[1] or 1)
    assert (cfg.model.backbone.base_channels, cfg.model.head.in_channels) == (16 * width, 64 * width)
    classes = int(re.search(r'cifar(\d+)$', name)[1])
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == classes
    assert cfg.train_dataloader.dataset.type == f'CIFAR{classes}'


@pytest.mark.parametrize('name', [name for name, model in CLASSIFIERS.items() if model.paper == 'bgn'])
def test_groups_of_bgn(name):
    """Tables 1 and 2, and the text: 32 groups of GN; LN is GN with one."""
    norm = config(CLASSIFIERS[name].path).model.backbone.get('norm_cfg') or dict(type='BN')
    kind, size = CLASSIFIERS[name].norm, int(re.search(r'_8x(\d+)_', name)[1])
    groups = dict(zip((128, 64, 32, 16, 8, 4, 2), (512, 256, 128, 64, 16, 2, 1)))[size]
    if kind == 'BGN':
        assert norm.num_groups == int(re.search(r'_g(\d+)_|$', name)[1] or groups)
        assert all(f'G={norm.num_groups},' in row.row for row in CLASSIFIERS[name].published if 'Table 1' in row.table)
    else:
        known = dict(
            LN=dict(type='GN', num_groups=1), GN=dict(type='GN', num_groups=32), IN=dict(type='IN', affine=True)
        )
        assert norm == known.get(kind, dict(type=kind))


@of_paper('rbn')
def test_rbn(name):
    """Section 4.1; of CIFAR the paper says nothing."""
    cfg = config(CLASSIFIERS[name].path)
    if 'mobilenetv2' in name:
        assert recipe(cfg) == (200, 'cosine', 0.05, 4e-5)
        assert [scheduler.end for scheduler in cfg.param_scheduler] == [5, 200]
    elif 'cifar' not in name:
        assert recipe(cfg) == (100, [30, 60, 90], 0.1, 1e-4)
    stats = dict(channel_mean='mu_c', channel_std='sigma_c', spatial_mean='mu_s', spatial_std='sigma_s')
    norm = cfg.model.backbone.get('norm_cfg') or dict(type='BN')
    starts_at_0 = not getattr(NORMS.get(norm['type']), 'why_not_zero', '')
    assert cfg.model.backbone.get('zero_init_residual', True) == starts_at_0
    for row in CLASSIFIERS[name].published:
        if row.table == 'rbn Table 3' and norm['type'] == 'RBN':
            center, scale = (stats[norm.get(f'{what}_stat', 'channel_mean')] for what in ('center', 'scale'))
            assert row.row == f'C cal. {center}, S cal. {scale}'
        elif row.table == 'rbn Table 2' and 'cal.' in row.row:
            made = dict(Centering=norm.get('center', True), Scaling=norm.get('scale', True))
            assert made == {kind: kind in row.row for kind in made}


@pytest.mark.parametrize('epoch', [30, 60, 90])
def test_hard_ratios_of_sn(epoch):
    """Fine-tuned for the rest of the schedule, or from scratch with all of it."""
    tuned, scratch = (config(ZOO[f'resnet50_sn_hard{epoch}_{how}_in1k'].path) for how in ('finetune', 'scratch'))
    assert all(cfg.model.backbone.norm_cfg == dict(type='SN', hard=True) for cfg in (tuned, scratch))
    assert recipe(scratch) == (100, [30, 60, 90], 0.1, 1e-4)
    left = [step - epoch for step in (30, 60, 90) if step > epoch]
    assert recipe(tuned) == (100 - epoch, left, 0.1 ** (4 - len(left)), 1e-4)
    assert tuned.load_from.endswith(f'epoch_{epoch}.pth') and f'ratios_{epoch}e' in scratch.load_from
