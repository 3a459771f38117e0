import argparse
import sys
import warnings
from datetime import timedelta
from unittest import mock

import pytest
import torch
from mmcv.cnn import build_norm_layer
from mmdet.registry import MODELS as DET
from mmengine.config import Config
from mmengine.utils.dl_utils.parrots_wrapper import SyncBatchNorm
from mmseg.registry import MODELS as SEG
from torch import nn
from torch.distributed import ProcessGroup

from mmnorm.cli.arguments import add_run_arguments
from mmnorm.engine.config import fit_to_cpu, load_config, parse_config
from mmnorm.engine.preflight import missing_weights, problems, unfit_weights, unseen_weights
from mmnorm.engine.processes import start_distributed
from mmnorm.norms import SyncEN, checks
from mmnorm.openmmlab import pretrained
from mmnorm.openmmlab.configs import replace_norm_types
from mmnorm.openmmlab.pretrained import place_of
from tests.conftest import ROOT

DOWNLOADED = (
    'https://host/folder/weights-12345678.pth?download=1',
    'open-mmlab://detectron/resnet50_gn',
    'openmmlab://resnet50_caffe',  # a name of before
    'mmcls://shufflenet_v2',
    'torchvision://resnet50',
)
TABLE_4 = str(ROOT / 'configs' / 'mask_rcnn_xbn_r50.py')


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, '_warned', set())


def test_missing_coco_is_listed_with_the_way_to_the_embedded_data():
    message = '\n'.join(problems(Config.fromfile(TABLE_4), 1, ('train', 'val')))
    for part in (
        'data/coco/annotations/instances_train2017.json',
        'data/coco/val2017/',
        'makes the embedded data set',
        'configs/mask_rcnn_xbn_r50_digits.py',
    ):
        assert part in message


def test_missing_weights_name_the_three_ways_on():
    message = '\n'.join(problems(Config.fromfile(TABLE_4), 1, ('train',)))
    for part in (
        'pretrained/resnet50_xbn.pth are missing',
        'github.com/huangleiBuaa/XBNBlock',
        'configs/mask_rcnn_xbn_r50_bn_init.py',
        'configs/mask_rcnn_xbn_r50_scratch.py',
    ):
        assert part in message
    for other in ('mask_rcnn_xbn_r50_bn_init.py', 'mask_rcnn_xbn_r50_scratch.py'):
        found = problems(Config.fromfile(ROOT / 'configs' / other), 1, ('train',))
        assert 'pretrained weights' not in '\n'.join(found)


def test_missing_weights_of_other_backbones_are_named_without_xbns_ways():
    model = dict(backbone=dict(type='ResNet', init_cfg=dict(type='Pretrained', checkpoint='gone.pth')))
    (message,) = problems(Config(dict(model=model)), 1, ('train',))
    assert 'ResNet: the pretrained weights gone.pth are missing' in message and 'XBN' not in message


@pytest.mark.parametrize(
    'name, shape, norm',
    [
        ('module.layer1.0.sn1.mean_weight', (3,), 'SN'),
        ('layer1.0.bn1.mean_weight', (3,), None),
        ('layer1.0.bn1.IN.weight', (4,), 'IBN'),
        ('layer1.0.bn1.scale_bias', (1, 8, 1, 1), 'RBN'),
        ('layer1.0.bn1.scale_bias', (8,), None),
    ],
)
def test_weights_in_the_layout_of_a_norms_authors(tmp_path, name, shape, norm):
    path = tmp_path / 'authors.pth'
    model = dict(type='FasterRCNN', backbone=dict(type='ResNet', init_cfg=dict(checkpoint=str(path))))
    torch.save({name: torch.ones(shape)}, path)
    messages = missing_weights(model)
    assert len(messages) == (norm is not None)
    assert all(f"{norm}'s authors" in text and text.endswith(f'OUT --to {norm}') for text in messages)
    path.write_text('damaged')
    assert missing_weights(model) == []


@pytest.mark.parametrize(
    'base, changes, found',
    [
        ('scratch_norm', '', 1),
        ('scratch_norm', ", norm_cfg=dict(type='BN')", 0),
        ('frozen_norm', ", init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')", 0),
        ('frozen_norm', ', init_cfg=None', 1),
    ],
)
def test_frozen_norms_of_no_weights(tmp_path, base, changes, found):
    path = tmp_path / 'project.py'
    path.write_text(
        f"_base_ = ['mmnorm::xbn/faster_rcnn_xbn_r50.py', 'mmnorm::_base_/{base}.py']\n"
        f'model = dict(backbone=dict(_base_.{base}{changes}))'
    )
    if base == 'frozen_norm':  # its parent has it already
        path.write_text(path.read_text().replace(", 'mmnorm::_base_/frozen_norm.py'", ''))
    said = [message for message in told_of(path) if 'keeps the statistics' in message]
    assert len(said) == found and all(text.startswith('FrozenBN keeps') for text in said)
    assert not any('keeps the statistics' in message for message in told_of(path, '--cfg-options', 'load_from=a.pth'))


def told_of(config, *options):
    """What a tool that trains a config warns of before it stops for want of data."""
    checks._warned.clear()
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    with warnings.catch_warnings(record=True) as said, pytest.raises(SystemExit):
        warnings.simplefilter('always')
        load_config(parser.parse_args([str(config), *options]), ('train',))
    return [str(warning.message) for warning in said]


def test_a_base_that_a_parent_has_is_told_of(tmp_path):
    path = tmp_path / 'project.py'
    path.write_text("_base_ = ['mmnorm::rbn/deeplabv3_rbn_r50_ade20k.py', 'mmnorm::_base_/live_norm.py']")
    with pytest.raises(ValueError, match='Duplicate keys.*live_norm.*leave that out'):
        parse_config(path)


def test_two_parts_that_start_from_one_file_are_one_problem():
    part = dict(type='ResNet', init_cfg=dict(checkpoint='gone.pth'))
    assert len(missing_weights(dict(backbone=part, head=dict(part, type='ResLayer')))) == 1


@pytest.mark.parametrize('installed', [True, False])
def test_torchvision_weights_need_torchvision(installed, monkeypatch):
    if installed:
        monkeypatch.setattr(f'{pretrained.__name__}._listed', lambda scheme: dict(resnet50='https://host/r50.pth'))
    else:
        pretrained._listed.cache_clear()
        monkeypatch.setitem(sys.modules, 'torchvision', None)
    found = missing_weights(Config.fromfile(ROOT / 'configs/mask_rcnn_xbn_r50_bn_init.py').model)
    expected = [] if installed else ['torchvision://resnet50 needs torchvision, which cannot be imported']
    assert [line.split(' (')[0] for line in found] == expected


@pytest.mark.parametrize('name', DOWNLOADED)
def test_weights_that_were_downloaded_are_checked_and_others_are_said(tmp_path, monkeypatch, name):
    if name.startswith('torchvision'):
        pytest.importorskip('torchvision', exc_type=ImportError)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    backbone = dict(type='ResNet', depth=18, base_channels=4, init_cfg=dict(type='Pretrained', checkpoint=name))
    cfg = Config(dict(default_scope='mmdet', model=dict(backbone=backbone)))
    assert problems(cfg, 1, ('train',)) == []
    (said,) = unseen_weights(cfg.model)
    assert said.startswith(f'{name} is not on this machine')

    weights = DET.build(dict(backbone, init_cfg=None, depth=34)).state_dict()
    if name.startswith('mmcls'):  # of whose classifiers mmengine takes the backbones
        weights = {f'backbone.{key}': value for key, value in weights.items()}
    path = place_of(name)
    path.parent.mkdir(parents=True)
    torch.save(dict(state_dict=weights), path)
    assert unseen_weights(cfg.model) == []
    (found,) = problems(cfg, 1, ('train',))
    assert found.startswith(f'{name} is not what ResNet can start from: its layer1 has 3 blocks')
    backbone['depth'] = 34
    assert problems(Config(dict(default_scope='mmdet', model=dict(backbone=backbone))), 1, ('train',)) == []
    loaded = DET.build(backbone)
    with mock.patch('torch.hub.download_url_to_file', side_effect=AssertionError('it is not the file')):
        loaded.init_weights()
    assert torch.equal(loaded.conv1.weight, next(iter(weights.values())))


def test_names_that_no_list_has(tmp_path, monkeypatch):
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    (tmp_path / 'open_mmlab.json').write_text('{"mine": "mine.pth"}')
    pretrained._listed.cache_clear()
    model = dict(backbone=dict(type='ResNet', init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet5O')))
    (message,) = missing_weights(model)
    assert 'open-mmlab://resnet5O is none of the' in message and 'weights that mmengine knows' in message
    assert place_of('open-mmlab://mine') == tmp_path / 'mine.pth' and place_of('s3://bucket/weights.pth') is None
    pretrained._listed.cache_clear()


@pytest.mark.parametrize('of_segmentor', [True, False])
def test_weights_that_mmseg_calls_pretrained_are_checked(tmp_path, of_segmentor):
    backbone = dict(type='ResNetV1c', depth=18, stem_channels=4, base_channels=4)
    torch.save(SEG.build(backbone).state_dict(), tmp_path / 'weights.pth')
    name = dict(pretrained=str(tmp_path / 'weights.pth'))
    for depth in (18, 34):
        backbone['depth'] = depth
        model = dict(type='EncoderDecoder', backbone=backbone, **name)
        if not of_segmentor:
            model = dict(type='EncoderDecoder', backbone=dict(backbone, **name), pretrained=None)
        found = unfit_weights(Config(dict(default_scope='mmseg', model=model)))
        assert [message.partition(' blocks')[0] for message in found] == [
            f'{tmp_path}/weights.pth is not what ResNetV1c can start from: its layer1 has 2'
        ] * (depth == 34)
    # of mmpretrain's classifiers it is all of them that are loaded
    model = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=34), **name)
    assert unfit_weights(Config(dict(default_scope='mmpretrain', model=model))) == []


@pytest.mark.parametrize('kind', ['SwinTransformer', 'PyramidVisionTransformer'])
def test_backbones_that_read_their_weights_themselves_are_not_judged(tmp_path, kind):
    """They rename and resize what they read."""
    torch.save({'patch_embed.proj.weight': torch.zeros(1)}, tmp_path / 'weights.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    cfg = Config(dict(default_scope='mmdet', model=dict(backbone=dict(type=kind, init_cfg=init_cfg))))
    assert unfit_weights(cfg) == []
    cfg.model.backbone.type = 'ResNet'
    cfg.model.backbone.depth = 18
    assert len(unfit_weights(cfg)) == 1


def test_data_and_weights_that_are_there_are_no_problem(tmp_path):
    for folder in ('train2017', 'val2017', 'annotations'):
        (tmp_path / 'data/coco' / folder).mkdir(parents=True)
    for file in (
        'data/coco/annotations/instances_train2017.json',
        'data/coco/annotations/instances_val2017.json',
        'pretrained/resnet50_xbn.pth',
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert problems(Config.fromfile(TABLE_4), 1, ('train', 'val')) == []


def test_wrapped_data_sets_are_looked_into():
    dataset = dict(
        type='RepeatDataset',
        dataset=dict(
            type='ConcatDataset',
            datasets=[
                dict(type='CocoDataset', data_root='a', ann_file='b.json'),
                dict(type='CocoDataset', ann_file='c.json'),
            ],
        ),
    )
    (message,) = problems(Config(dict(train_dataloader=dict(dataset=dataset))), 1, ('train',))
    assert 'a/b.json' in message and '  c.json' in message


@pytest.mark.parametrize('gpus, asked, problem', [(0, 8, False), (8, 8, False), (2, 8, True)])
def test_fewer_gpus_than_asked_is_said(monkeypatch, gpus, asked, problem):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    found = problems(Config(dict(model=dict(type='X'))), asked, ('train',))
    assert found == ([] if not problem else [found[0]])
    if problem:
        assert '8 processes need as many GPUs, but there are 2: use at most 2' in found[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')
@pytest.mark.parametrize(
    'extra, arguments, remedy',
    [
        ('', ['--amp'], 'leave out --amp'),
        ("optim_wrapper = dict(type='AmpOptimWrapper')", [], "set optim_wrapper.type='OptimWrapper' in "),
    ],
)
def test_mixed_precision_on_a_cpu_ends_in_one_line(forked_tool, digits_config, extra, arguments, remedy):
    done = forked_tool('train.py', digits_config(extra), *arguments)
    assert done.returncode and f'error: mixed precision needs a GPU, and this machine has none: {remedy}' in done.stdout
    assert 'Traceback' not in done.stdout


@pytest.mark.parametrize(
    'kind',
    [
        'SyncBN',
        'mmdet.SyncBN',
        'MMSyncBN',
        nn.SyncBatchNorm,
        SyncBatchNorm,
        f'{SyncBatchNorm.__module__}.SyncBatchNorm',
    ],
)
def test_sync_bn_by_any_name_and_as_a_class_becomes_bn_on_a_cpu(kind):
    """New-style configs have classes, and their dumps the dotted names."""
    cfg = Config(dict(launcher='none', model=dict(backbone=dict(type='ResNet', norm_cfg=dict(type=kind)))))
    with pytest.warns(UserWarning, match='SyncBN needs GPUs'):
        fit_to_cpu(cfg)
    assert cfg.model.backbone.norm_cfg.type == 'BN'


@pytest.mark.parametrize(
    'norm_cfg',
    [
        dict(type='SyncBN', process_group=ProcessGroup(0, 1), affine=True),
        dict(type='MMSyncBN', stats_mode='N', group=ProcessGroup(0, 1), momentum=0.03),
    ],
    ids=['torch', 'mmcv'],
)
def test_what_only_a_synchronized_bn_knows_goes_with_it(norm_cfg):
    group = norm_cfg.get('process_group') or norm_cfg['group']
    cfg = Config(dict(launcher='none', model=dict(norm_cfg=norm_cfg)))
    fit_to_cpu(cfg)
    assert isinstance(build_norm_layer(cfg.model.norm_cfg, 8)[1], torch.nn.BatchNorm2d)
    synchronized = [dict(norm_cfg)]
    assert replace_norm_types(synchronized, {norm_cfg['type']: 'SyncEN'}, mode='offline') == 1
    layer = build_norm_layer(synchronized[0], 8)[1]
    assert type(layer) is SyncEN and layer.process_group is group
    assert layer.momentum == norm_cfg.get('momentum', 0.1)


@pytest.mark.parametrize('given', [None, 7])
def test_how_long_ranks_wait_is_an_option_and_in_the_config(given, monkeypatch, tmp_path):
    monkeypatch.setenv('RANK', '0')
    path = tmp_path / 'project.py'
    path.write_text("env_cfg = dict(dist_cfg=dict(backend='nccl', timeout=90))\nmodel = dict()")
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    options = ['--timeout', str(given)] if given else []
    cfg = load_config(parser.parse_args([str(path), '--launcher', 'pytorch', *options]), ())
    assert cfg.env_cfg.dist_cfg == dict(backend='nccl', timeout=given or 90)  # as mmengine takes it, for GPUs
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with mock.patch('torch.distributed.init_process_group') as init:
        start_distributed(cfg)
        init.assert_called_once_with('gloo', timeout=timedelta(seconds=given or 90))
        cfg.pop('env_cfg')
        start_distributed(cfg)
        init.assert_called_with('gloo', timeout=timedelta(minutes=30))


def test_sync_bn_becomes_bn_on_a_cpu_with_one_warning():
    cfg = Config(
        dict(
            launcher='pytorch',
            sync_bn='torch',
            model=dict(
                backbone=dict(type='ResNet', norm_cfg=dict(type='SyncBN')), heads=[dict(norm_cfg=dict(type='SyncBN'))]
            ),
        )
    )
    with pytest.warns(UserWarning, match='SyncBN needs GPUs') as caught:
        fit_to_cpu(cfg)
    assert len(caught) == 1
    assert cfg.model.backbone.norm_cfg.type == cfg.model.heads[0].norm_cfg.type == 'BN'
    assert cfg.model_wrapper_cfg.device_ids is None and 'sync_bn' not in cfg
