"""Parts of a config that do not fit each other are told by name, with shapes, when the first batch comes."""

import pytest

LOAD = "dict(type='LoadImageFromFile')"
BOXES = "dict(type='LoadAnnotations', with_bbox=True)"
SIZE = "dict(type='Resize', scale=(64, 64), keep_ratio=True)"
PACK = "dict(type='PackDetInputs')"


def model(text):
    return f'model = dict({text})'


def pipeline(split, *steps, **more):
    more = ''.join(f', {key}={value}' for key, value in more.items())
    return f'{split}_dataloader = dict(dataset=dict(pipeline=[{", ".join(steps)}]){more})'


# of base.py or seg.py: a tool, what is wrong, the key that is told, and parts of the message
CASES = [
    (
        'train base',
        model('neck=dict(in_channels=[4, 8, 16, 64])'),
        'model.neck: RuntimeError: Given groups=1, weight of size [8, 64, 1, 1], expected input[4, 32, 3, 3] to',
        'the first batch of train_dataloader by neck.lateral_convs.3.conv (Conv2d), which got 4x32x3x3 (model.neck',
        'in_channels=[4, 8, 16, 64], ',
    ),
    (
        'test base',
        model('neck=dict(in_channels=[4, 8, 16])'),
        'model.neck: AssertionError at assert len(inputs) == len(self.in_channels). It was raised for the first batch',
        'test_dataloader by neck (FPN), which got 4x4x24x24, 4x8x12x12, 4x16x6x6, 4x32x3x3 (model.neck',
        'in mmdet/models/necks/fpn.py, line ',
    ),
    (
        'train base',
        model('neck=dict(num_outs=4)'),
        'model.bbox_head: AssertionError at assert ',
        'by bbox_head (RetinaHead), which got ',
    ),
    (
        'train base',
        model('bbox_head=dict(in_channels=16)'),
        'model.bbox_head: RuntimeError: Given groups=1',
        'by bbox_head.cls_convs.0.conv (Conv2d), which got 4x8x',
        'in_channels=16',
    ),
    (
        'train base',
        model('backbone=dict(norm_cfg=dict(eps=-1))'),
        'model.backbone: ValueError: batch_norm eps must be non-negative, but got -1',
        'by backbone.bn1 (BatchNorm2d), which got 4x4x',
    ),
    (
        'train base',
        model('data_preprocessor=dict(pad_size_divisor=0)'),
        'model.data_preprocessor: ZeroDivisionError: ',
        '(model.data_preprocessor has pad_size_divisor=0)',
    ),
    (
        'test base',
        model('test_cfg=None'),
        "model.bbox_head: AttributeError: 'NoneType' object has no attribute 'get'",
        '"nms_pre = cfg.get(\'nms_pre\', -1)"',
    ),
    (
        'train base',
        pipeline('train', BOXES, PACK),
        'model.data_preprocessor: KeyError: inputs',
    ),
    (
        'train base',
        pipeline('train', SIZE, LOAD, BOXES, PACK),
        'train_dataloader.dataset.pipeline.0: ',
        'by Resize of the pipeline',
    ),
    (
        'train base',
        pipeline('train', LOAD, SIZE, PACK),
        "AttributeError: 'InstanceData' object has no attribute ",
    ),
    (
        'test base',
        pipeline('test', LOAD, SIZE, "dict(type='PackDetInputs', meta_keys=('img_path',))"),
        'model.',
    ),
    (
        'train base',
        pipeline('train', SIZE, LOAD, BOXES, PACK, num_workers=1),
        'train_dataloader.dataset.pipeline.0: ',
        'by Resize of the pipeline',
    ),
    (
        'train seg',
        model('decode_head=dict(in_channels=16)'),
        'model.decode_head: RuntimeError: Given groups=1, weight of size [8, 16, 3, 3], expected input[2, 32, ',
        'by decode_head.convs.0.conv (Conv2d), which got 2x32x',
    ),
    (
        'train seg',
        model('decode_head=dict(in_index=7)'),
        'model.decode_head: IndexError: ',
        'in_index=7',
    ),
    (
        'train seg',
        model('decode_head=dict(num_classes=3)'),
        'model.decode_head',
        'num_classes=3',
    ),
    (
        'train seg',
        pipeline('train', LOAD, "dict(type='PackSegInputs')"),
        "AttributeError: 'SegDataSample' object has no attribute ",
    ),
    (
        'test seg',
        model("decode_head=dict(norm_cfg=dict(type='SN'), in_index=0)"),
        'model.decode_head: ',
    ),
]


@pytest.mark.parametrize('case', CASES, ids=lambda case: f'{case[0]} {case[1]}'[:90])
def test_the_part_is_told(case, folder, tmp_path, call):
    on, change, start, *parts = case
    tool, base = on.split()
    config = tmp_path / 'case.py'
    config.write_text(f'_base_ = {str(folder / base)!r} + ".py"\n{change}\n')
    status, told = call(tool, str(config), *[f'{base}.pth', '--partial'] * (tool == 'test'))
    assert status == 2 and len(told) == 1, told
    assert start in told[0] and told[0].startswith(f'{config}: '), told[0]
    assert all(part in told[0] for part in parts), told[0]
    assert told[0].strip().endswith('; --traceback shows the rest')
