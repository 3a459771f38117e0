"""What a user does wrong is told in one message, with the file and the key, and ends with exit status 2.

Two tables: what is wrong in a config or behind it, and command lines with files that are something else. Whoever finds
another mistake adds a row; a test of its own is for what needs a set-up of its own.
"""

import json
import shlex
import sys
from typing import NamedTuple

import pytest
import torch

from mmnorm.cli import main, ranks
from tests.processes import free_port


class Case(NamedTuple):
    """A row: a tool, what is wrong in its config or behind it, and what it says."""

    tool: str
    config: str | None  # put behind a config that works; None: the message needs no config
    message: str  # part of what is told; {config} stands for the file
    whole: bool = False  # the text is the whole config


def at(key, reason):
    return f'{{config}}: {key}: {reason}'


def must_be(key, what):
    return f'{{config}}: {key} must be {what}'


def train(config, message):
    return Case('train', config, message)


NORM = 'model = dict(backbone=dict(norm_cfg=dict(_delete_=True, {})))'.format
UNKNOWN_NORM = at('model.backbone.norm_cfg', "nothing is registered as 'SM'; nearest: SW, SN")
DATA = 'train_dataloader = dict({})'.format
PRETRAINED = "model = dict(backbone=dict(init_cfg=dict(type='Pretrained', {})))".format
CASES = [
    # what cannot be read
    Case('train', 'train_cfg = dict(', "{config} cannot be read as a config: SyntaxError: '(' was never closed"),
    Case('train', 'train_cfg = undefined', "{config} cannot be read as a config: NameError: name 'undefined'"),
    Case('train', "_base_ = './gone.py'", '{config} cannot be read as a config: FileNotFoundError', whole=True),
    Case('train', "_base_ = 'mmdet::gone.py'", '{config} cannot be read as a config', whole=True),
    Case('train', "model = dict(type=dict(a=1))", '{config} cannot be read as a config: TypeError: type='),
    Case('train', "custom_imports = dict(imports=['gone'], allow_failed_imports=False)", 'import custom modules'),
    # what is missing
    Case('train', '', '{config}: model is missing', whole=True),
    Case('test', '', '{config}: model is missing', whole=True),
    Case('diagnose', '', '{config}: model is missing', whole=True),
    Case('norms', '', '{config} has no model', whole=True),
    Case('train', 'model = None', '{config}: model is missing'),
    Case('train', 'train_cfg = None', '{config}: train_cfg is missing, and train_dataloader and optim_wrapper need it'),
    Case('train', 'train_dataloader = None', '{config}: train_dataloader is missing'),
    Case('train', 'optim_wrapper = None', '{config}: optim_wrapper is missing'),
    Case('train', 'val_evaluator = None', '{config}: val_evaluator is missing, and val_dataloader and val_cfg need it'),
    Case('test', 'test_cfg = None', '{config}: test_cfg is missing'),
    Case('diagnose', 'test_evaluator = None', '{config}: test_evaluator is missing'),
    Case('train', "load_from = 'gone.pth'", '{config}: load_from: checkpoint gone.pth does not exist'),
    # types and numbers
    Case('train', "model = 'RetinaNet'", "{config}: model must be a dict, got 'RetinaNet'"),
    Case('norms', "model = 'RetinaNet'", '{config}: model must be a dict'),
    Case('train', "default_hooks = [dict(type='CheckpointHook')]", '{config}: default_hooks must be a dict'),
    Case('train', "custom_hooks = dict(_delete_=True, type='ListNormsHook')", 'custom_hooks must be a list'),
    Case('train', "custom_hooks = ['ListNormsHook']", at('custom_hooks', 'TypeError: hook should be')),
    Case('train', "resume = 'yes'", "{config}: resume must be True or False, got 'yes'"),
    *(
        Case('train', f'train_cfg = dict({key}={value})', f'{{config}}: train_cfg.{key} must be a whole number, 1 or')
        for key in ('max_epochs', 'val_interval')
        for value in ('-1', '0', "'3'", '1.5', 'True', 'dict(_delete_=True)')
    ),
    *(
        Case(tool, f'{split}_dataloader = dict({key}={value})', f'{{config}}: {split}_dataloader.{key} must be')
        for tool, split in (('train', 'train'), ('test', 'test'), ('diagnose', 'train'))
        for key, value in (('batch_size', 0), ('batch_size', -2), ('batch_size', "'2'"), ('num_workers', -1))
    ),
    Case('train', DATA('num_workers=0, persistent_workers=True'), at('train_dataloader', 'ValueError: persistent')),
    *(
        Case('train', f'optim_wrapper = dict(optimizer=dict(lr={lr}))', '{config}: optim_wrapper: lr must be a number')
        for lr in ('-1', '0', "'0.1'", 'None', "float('nan')")
    ),
    Case('train', "param_scheduler = [dict(type='MultiStepLR', milestones=[-1])]", 'milestones must be whole numbers'),
    Case('train', "param_scheduler = [dict(type='MultiStepLR', milestones='8')]", 'milestones must be whole numbers'),
    Case('train', "randomness = dict(seed='zero')", '{config}: TypeError: Cannot cast'),
    # names
    *(Case(tool, NORM("type='SM'"), UNKNOWN_NORM) for tool in ('train', 'test', 'diagnose', 'norms')),
    Case('train', "model = dict(type='RetinaNett')", at('model', "nothing is registered as 'RetinaNett'; near")),
    Case('train', "model = dict(backbone=dict(type='ResNett'))", at('model.backbone', 'nothing is registered')),
    Case('train', DATA("dataset=dict(type='CocoDatset')"), at('train_dataloader.dataset', 'nothing is registered')),
    Case('train', DATA("dataset=dict(pipeline=[dict(type='Lod')])"), at('train_dataloader.dataset.pipeline.0', 'noth')),
    Case('train', DATA("sampler=dict(type='Sampler')"), at('train_dataloader.sampler', 'nothing is registered')),
    Case('train', "custom_hooks = [dict(type='RecolectHook')]", at('custom_hooks.0', "nothing is registered as 'Rec")),
    Case('train', "default_hooks = dict(logger=dict(type='Logg'))", at('default_hooks.logger', 'nothing is')),
    Case('train', "optim_wrapper = dict(optimizer=dict(type='AdamX'))", at('optim_wrapper', 'optimizer: nothing is')),
    Case('train', "optim_wrapper = dict(type='OptWrapper')", at('optim_wrapper', 'nothing is registered')),
    Case('train', "train_cfg = dict(type='EpochLoop')", at('train_cfg', "nothing is registered as 'EpochLoop'")),
    Case('train', "param_scheduler = [dict(type='CosineLR')]", at('param_scheduler.0', 'nothing is registered')),
    Case('train', "visualizer = dict(type='Vis')", at('visualizer', 'nothing is registered')),
    Case('test', "test_evaluator = dict(type='CocoMetrics')", at('test_evaluator', 'nothing is registered')),
    Case('diagnose', "test_evaluator = dict(type='CocoMetrics')", at('test_evaluator', 'nothing is registered')),
    # arguments
    Case('train', NORM("type='SN', bogus=1"), at('model.backbone.norm_cfg', "SN(4): unknown argument bogus=1")),
    Case('train', NORM('eps=1e-5'), at('model.backbone.norm_cfg', 'KeyError: the cfg dict must contain')),
    Case('norms', "model = dict(backbone=dict(norm_cfg='SN'))", at('model.backbone', 'TypeError: cfg must be a dict')),
    Case('train', 'model = dict(backbone=dict(depht=50))', at('model.backbone', 'TypeError: ResNet.__init__()')),
    Case('train', 'model = dict(backbone=dict(depht=50))', "'depht'; nearest: depth"),
    Case('norms', 'model = dict(backbone=dict(depth=51))', at('model.backbone', 'KeyError: invalid depth 51')),
    Case('train', "model = dict(backbone=dict(frozen_stages='1'))", at('model.backbone', "TypeError: '>=' not sup")),
    Case('train', 'model = dict(_delete_=True, backbone=1)', at('model', 'KeyError: `cfg` or')),
    Case('train', DATA('dataset=dict(bogus=1)'), at('train_dataloader.dataset', 'TypeError: BaseDataset.__init__()')),
    Case('train', 'train_cfg = dict(max_epoch=2)', 'nearest: max_epochs'),
    Case('test', "test_evaluator = dict(metric='bboxx')", at('test_evaluator', 'KeyError: metric should be one of')),
    # more of kinds and numbers: what users touch, with what they may write
    train('model = [1]', must_be('model', 'a dict, got [1]')),
    train('model = dict(type=None)', at('model', 'TypeError: type must be a str or valid type')),
    train("model = dict(backbone='ResNet')", at('model', 'TypeError: cfg should be a dict')),
    train('model = dict(backbone=[1])', at('model.backbone', 'TypeError: cfg should be a dict')),
    train("model = dict(backbone=dict(depth='18'))", at('model.backbone', 'KeyError: invalid depth 18 for resnet')),
    train('model = dict(backbone=dict(out_indices=(7,)))', at('model.backbone', 'AssertionError at assert max(out_i')),
    train('model = dict(backbone=dict(base_channels=-4))', at('model.backbone', 'RuntimeError: Trying to create tens')),
    train('model = dict(backbone=dict(frozen_stages=9))', at('model.backbone', "AttributeError: 'ResNet' object has")),
    train('model = dict(backbone=dict(init_cfg=5))', must_be('model.backbone.init_cfg', 'a dict or a list of them')),
    train("model = dict(backbone=dict(init_cfg='k.pth'))", must_be('model.backbone.init_cfg', 'a dict or a list of t')),
    train('model = dict(backbone=dict(pretrained=5))', must_be('model.backbone.pretrained', 'a text, True or F')),
    train(PRETRAINED("checkpoint='base.pth'"), 'base.pth is not what ResNet can start from: none of its names is one'),
    train(PRETRAINED("checkpoint='base.pth'"), "but those below 'backbone.' are"),
    train(
        "model = dict(backbone=dict(base_channels=8, init_cfg=dict(type='Pretrained', checkpoint='base.pth', "
        "prefix='backbone.')))",
        'base.pth is not what ResNet can start from: 100 of its tensors have another shape, as conv1.weight: (4, 3, 7',
    ),
    train(PRETRAINED("checkpoint='gone.pth'"), 'ResNet: the pretrained weights gone.pth are missing (looked up from'),
    train(NORM("type='GN', num_groups=3"), at('model.backbone.norm_cfg', 'ValueError: num_channels (4) must be divis')),
    train(NORM("type='GN'"), at('model.backbone.norm_cfg', "AssertionError at assert 'num_groups' in cfg_")),
    train(NORM("type='SN', groups=3"), at('model.backbone.norm_cfg', 'SN: groups=3 does not divide 4 channels; choos')),
    train(NORM("type=''"), at('model.backbone.norm_cfg', "nothing is registered as ''")),
    train(NORM("type='no.such'"), at('model.backbone.norm_cfg', "nothing is registered as 'no.such'")),
    train(NORM("type='BN', requires_grad='no'"), at('model.backbone.norm_cfg', 'RuntimeError: requires_grad must be')),
    train('model = dict(neck=dict(in_channels=4))', at('model.neck', 'AssertionError at assert isinstance(in_channel')),
    train('model = dict(neck=dict(num_outs=0))', at('model.neck', 'AssertionError at assert num_outs >= self.num_ins')),
    train("model = dict(bbox_head=dict(num_classes='10'))", at('model', "TypeError: ")),
    train('model = dict(bbox_head=dict(anchor_generator=5))', at('model', 'TypeError: cfg should be a dict')),
    train('model = dict(bbox_head=dict(num_classes=3))', 'it has 10 of the classes of the config, and model.bbox_hea'),
    train('model = dict(data_preprocessor=dict(mean=[1]))', at('model.data_preprocessor', 'AssertionError: mean and')),
    train("optim_wrapper = dict(optimizer='SGD')", must_be('optim_wrapper.optimizer', "a dict, got 'SGD'")),
    train('optim_wrapper = [dict()]', must_be('optim_wrapper', 'a dict, got [{{}}]')),
    train('optim_wrapper = dict(optimizer=dict(lr=float("inf")))', '{config}: optim_wrapper: lr must be a number abov'),
    train('optim_wrapper = dict(optimizer=dict(lr=True))', '{config}: optim_wrapper: lr must be a number above 0, got'),
    train('optim_wrapper = dict(clip_grad=35)', at('optim_wrapper', 'AssertionError: If `clip_grad` is not None, it')),
    train('optim_wrapper = dict(accumulative_counts=0)', at('optim_wrapper', 'AssertionError: _accumulative_counts a')),
    train("optim_wrapper = dict(paramwise_cfg='x')", at('optim_wrapper', 'TypeError: paramwise_cfg should be None or')),
    train("param_scheduler = 'MultiStepLR'", '{config}: TypeError: `param_scheduler` should be a `_ParamScheduler`'),
    train('param_scheduler = [5]', at('param_scheduler', 'TypeError: `param_scheduler` should be')),
    train('param_scheduler = [dict(gamma=0.1)]', at('param_scheduler', 'AssertionError: Each parameter scheduler')),
    train("param_scheduler = [dict(type='MultiStepLR', milestones=8)]", 'milestones must be whole numbers, got 8'),
    train("param_scheduler = [dict(type='MultiStepLR')]", at('param_scheduler.0', 'TypeError: MultiStepParamSchedule')),
    train("param_scheduler = [dict(type='LinearLR', start_factor=2)]", at('param_scheduler.0', 'ValueError: Starting')),
    train("param_scheduler = [dict(type='LinearLR', begin=5, end=2)]", at('param_scheduler.0', 'ValueError: end shou')),
    train('env_cfg = 5', must_be('env_cfg', 'a dict, got 5')),
    train("env_cfg = dict(mp_cfg='fork')", at('env_cfg', 'TypeError: mmengine.utils.dl_utils.setup_env.set_multi_pr')),
    train("env_cfg = dict(mp_cfg=dict(mp_start_method='fork_'))", at('env_cfg', "ValueError: cannot find context for")),
    train('randomness = 5', must_be('randomness', 'a dict, got 5')),
    train('randomness = dict(seed=-1)', '{config}: ValueError: Seed must be between 0 and 2**32 - 1'),
    train('randomness = dict(sead=1)', "{config}: TypeError: Runner.set_randomness() got an unexpected keyword argume"),
    train("log_level = 'LOUD'", '{config}: KeyError: LOUD'),
    train("log_processor = 'x'", at('log_processor', 'TypeError: log processor should be a LogProcessor object or di')),
    *(
        train(f'default_hooks = dict(checkpoint=dict({key}={value}))', must_be(f'default_hooks.checkpoint.{key}', 'a'))
        for key, value in (('interval', "'1'"), ('interval', '0'), ('max_keep_ckpts', "'3'"), ('max_keep_ckpts', '0'))
    ),
    train('default_hooks = dict(checkpoint=dict(save_best=5))', at('default_hooks.checkpoint', '"save_best" should b')),
    train('default_hooks = dict(checkpoint=dict(max_keep_ckpt=1))', 'no argument max_keep_ckpt; nearest: max_keep_'),
    train('default_hooks = dict(logger=dict(interval=0))', at('default_hooks.logger', 'interval must be greater than')),
    train('custom_hooks = [5]', at('custom_hooks', 'TypeError: hook should be an instance of Hook or dict')),
    train('custom_hooks = 5', must_be('custom_hooks', 'a list, got 5')),
    train("custom_hooks = [dict(type='ListNormsHook', bogus=1)]", at('custom_hooks.0', 'TypeError: ')),
    train('load_from = 5', must_be('load_from', 'the path of a file, got 5')),
    train("load_from = ['a.pth']", must_be('load_from', "the path of a file, got ['a.pth']")),
    train("load_from = ''", at('load_from', 'checkpoint has no name')),
    train("load_from = 'folder.pth'", at('load_from', 'checkpoint folder.pth is a folder: give the file in it')),
    train("load_from = 'loop.pth'", at('load_from', 'checkpoint loop.pth is a link to loop.pth, where no file is')),
    train("load_from = 'fifo.pth'", at('load_from', 'checkpoint fifo.pth is no file, but a pipe or a device')),
    train("load_from = '~/gone.pth'", 'gone.pth does not exist'),
    train("load_from = '$HOME/gone.pth'", '$HOME/gone.pth does not exist (~ and $NAME are known to the shell, outside'),
    train('auto_scale_lr = 5', must_be('auto_scale_lr', 'a dict, got 5')),
    train('auto_scale_lr = dict(base_batch_size=0)', must_be('auto_scale_lr.base_batch_size', 'a whole number, 1 or')),
    train('custom_imports = dict(imports=5)', '{config} cannot be read as a config: '),
    train(DATA('batch_size=True'), must_be('train_dataloader.batch_size', 'a whole number, 1 or more, got True')),
    train(DATA('batch_size=1000, batch_sampler=dict(drop_last=True)'), 'train_dataloader gives no batch of its 16 ima'),
    train(DATA("num_workers='2'"), must_be('train_dataloader.num_workers', 'a whole number, 0 or more')),
    train(DATA('batchsize=2'), at('train_dataloader', 'TypeError: DataLoader.__init__() got an unexpected keyword')),
    train(DATA('dataset=5'), must_be('train_dataloader.dataset', 'a dict, got 5')),
    train(DATA('dataset=dict(ann_file=5)'), must_be('train_dataloader.dataset.ann_file', 'a text, got 5')),
    train(DATA("dataset=dict(ann_file='gone.json')"), 'the data set is missing. These are expected, relative to'),
    train(DATA('dataset=dict(data_root=5)'), must_be('train_dataloader.dataset.data_root', 'a text, got 5')),
    train(DATA("dataset=dict(data_root='~/gone')"), 'the data set is missing'),
    train(DATA("dataset=dict(data_root='loop')"), 'the data set is missing'),
    train(DATA("dataset=dict(data_prefix='x')"), must_be('train_dataloader.dataset.data_prefix', "a dict, got 'x'")),
    train(DATA("dataset=dict(data_prefix=dict(img='gone/'))"), 'the data set is missing'),
    train(DATA("dataset=dict(pipeline='x')"), must_be('train_dataloader.dataset.pipeline', "a list, got 'x'")),
    train(DATA('dataset=dict(pipeline=[5])'), at('train_dataloader.dataset', 'TypeError: transform must be a callabl')),
    train(DATA('dataset=dict(pipeline=[dict(scale=1)])'), at('train_dataloader.dataset.pipeline.0', 'KeyError: `cfg`')),
    train(DATA('dataset=dict(metainfo=5)'), must_be('train_dataloader.dataset.metainfo', 'a dict, got 5')),
    train(DATA('dataset=dict(metainfo=dict(classes=5))'), 'metainfo of the config has classes=5: it must be names'),
    train(DATA("dataset=dict(metainfo=dict(classes=['cat']))"), "is one of the 1 classes of the config (cat): set met"),
    train(DATA('dataset=dict(filter_cfg=dict(min_size=10**6))'), 'no image is 1000000 pixels wide and high'),
    train(DATA('dataset=dict(indices=0)'), '{config}: train_dataloader.dataset.indices leaves no image, got 0'),
    train(DATA('dataset=dict(indices=[])'), '{config}: train_dataloader.dataset.indices leaves no image, got []'),
    train("val_evaluator = dict(ann_file='gone.json')", 'gone.json: this ann_file of val_evaluator does not exist'),
    train('val_evaluator = dict(metric=5)', at('val_evaluator', "KeyError: metric should be one of 'bbox', 'segm'")),
    train("val_cfg = dict(type='ValLop')", at('val_cfg', "nothing is registered as 'ValLop'; nearest: ValLoop")),
    train('val_cfg = dict(bogus=1)', at('val_cfg', 'TypeError: ValLoop.__init__() got an unexpected keyword argument')),
    train('train_cfg = 5', must_be('train_cfg', 'a dict, got 5')),
    train("train_cfg = dict(max_epochs=float('nan'))", must_be('train_cfg.max_epochs', 'a whole number, 1 or more, g')),
    Case('test', 'test_dataloader = dict(dataset=dict(indices=0))', 'test_dataloader.dataset.indices leaves no image'),
    Case('test', "test_evaluator = dict(metric=['bbox', 'foo'])", at('test_evaluator', 'KeyError: metric should be')),
    Case('diagnose', 'test_evaluator = dict(format_only=True)', 'test_evaluator of the config has format_only=True'),
    Case('diagnose', 'train_dataloader = None', '{config}: train_dataloader is missing'),
]  # fmt: skip

# What the tools are given in a folder with files of all kinds, see workshop.py
COMMANDS = [
    # mmnorm itself
    ('trian base.py', "invalid choice: 'trian' (choose from"),
    # configs that cannot be read, by the tools that read them in ways of their own
    *(
        (f'{tool} gone.py{rest}', 'config gone.py does not exist')
        for tool, rest in (('train', ''), ('norms', ''), ('test', ' base.pth'), ('check-data', ''))
    ),
    *(
        (f'{tool} tag.yaml{rest}', "tag.yaml cannot be read as a config: YAML with the tag 'python/object/apply:builti")
        for tool, rest in (
            ('train', ''),
            ('test', ' base.pth'),
            ('diagnose', ' base.pth'),
            ('statistics shift', ' base.pth'),
            ('weights show', ' base.pth'),
            ('norms', ''),
            ('check-data', ''),
        )
    ),
    *(
        (f'{tool} {name}{rest}', f'{name} {message}')
        for tool, rest in (('train', ''), ('norms', ''), ('weights show', ' sn.pth'))
        for name, message in (
            ('folder.py', 'is a folder: give the file in it'),
            ('fifo.py', 'is no file, but a pipe or a device'),
            ('exits.py', 'cannot be read as a config: SystemExit: 0 (it ends the process that reads it)'),
        )
    ),
    ("train ''", 'config has no name'),
    ("train '~/base.py'", 'config ~/base.py does not exist (~ and $NAME are known to the shell, outside of quotes)'),
    ('train loop.py', 'config loop.py is a link to loop.py, where no file is'),
    ('train dangling.py', 'config dangling.py is a link to gone.py, where no file is'),
    ('train empty.py', 'empty.py: model is missing'),
    ('train bom.py', 'invalid non-printable character U+FEFF (<unknown>, line 1) (save it as UTF-8 without a byte'),
    ('train utf16.py', "can't decode byte 0xff in position 0: invalid start byte (save it as UTF-8)"),
    ('train latin1.py', "can't decode byte 0xf6 in position 6: invalid start byte (save it as UTF-8)"),
    ('train nul.py', 'nul.py cannot be read as a config: SyntaxError: source code string cannot contain null bytes'),
    ('train binary.py', 'binary.py cannot be read as a config: UnicodeDecodeError'),
    ('train deep.py', 'deep.py cannot be read as a config: SyntaxError: too many nested parentheses'),
    ('train minus.py', 'minus.py cannot be read as a config: '),
    ('train own.py', '(it is nested too deeply, or _base_ leads back to it)'),
    ('train no_parent.py', "no_parent.py cannot be read as a config: FileNotFoundError: [Errno 2] No such file"),
    ('train number.py', '(_base_ is the path of a file, or a list of such)'),
    ('train empty.json', 'empty.json cannot be read as a config: JSONDecodeError: Expecting value: line 1 column 1'),
    ('train list.json', "list.json cannot be read as a config: AttributeError: 'list' object has no attribute 'get' ("),
    ('train cut.json', 'cut.json cannot be read as a config: JSONDecodeError: Expecting property name'),
    ('train deep.json', 'decoding a JSON array from a unicode string (it is nested too deeply, or'),
    ('train bom.json', 'Unexpected UTF-8 BOM (decode using utf-8-sig): line 1 column 1 (char 0) (save it as UTF-8'),
    ('train empty.yaml', "'NoneType' object has no attribute 'get' (at its top, names have values)"),
    ('train text.yaml', "'str' object has no attribute 'get' (at its top, names have values)"),
    ('train tabs.yaml', 'tabs.yaml cannot be read as a config: ScannerError: while scanning for the next token'),
    ('train base.txt', 'base.txt cannot be read as a config: OSError: Only py/yml/yaml/json type are supported now!'),
    ('train base', 'base cannot be read as a config: OSError: Only py/yml/yaml/json type are supported now!'),
    ('train png.pth', 'png.pth cannot be read as a config: OSError: Only py/yml/yaml/json type'),
    # train: options
    ('train', 'the following arguments are required: config'),
    ('train base.py more', 'unrecognized arguments: more'),
    ('train base.py --bogus', 'unrecognized arguments: --bogus'),
    *(
        (f'train base.py --{option} {value}', f'argument --{option}: must be {least} or more, got {value}')
        for option, least, values in (
            ('processes', 1, ('0', '-1', 'two', '1e3')),
            ('check', 1, ('0', '-1', 'x')),
            ('timeout', 1, ('0', 'x')),
            ('stop-on-nan', 0, ('-1', 'nan')),
        )
        for value in values
    ),
    ('train base.py --launcher gone', "argument --launcher: invalid choice: 'gone'"),
    ('train base.py --launcher slurm', '--launcher slurm: it has not started this process, for SLURM_PROCID is not in'),
    ('train base.py --launcher pytorch', '--launcher pytorch: it has not started this process, for RANK is not in'),
    ('train base.py --resume gone.pth', '--resume: gone.pth does not exist'),
    ('train base.py --resume folder.pth', '--resume: folder.pth is a folder: give the file in it'),
    ("train base.py --resume ''", '--resume: has no name'),
    ('train base.py --resume png.pth', 'png.pth cannot be loaded as a checkpoint: it begins with'),
    ('train base.py --resume base.pth', 'base.pth cannot be resumed: it does not say how far its training was (epoch'),
    ('train base.py --resume gn.pth', 'gn.pth cannot be resumed: 20 of its norms are not those of the model'),
    ('train base.py --auto-scale-lr', '--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=...) in base.py'),
    ('train base.py --work-dir', 'argument --work-dir: expected one argument'),
    ('train base.py --work-dir file', 'file is a file, not a folder'),
    ('train base.py --work-dir loop', 'loop is a file, not a folder'),
    ('train base.py --work-dir file/below', 'file/below cannot be made: {folder}/file is a file, not a folder'),
    # --cfg-options
    ('train base.py --cfg-options', 'argument --cfg-options: expected at least one argument'),
    *(
        (f'train base.py --cfg-options {option}', f'--cfg-options: {option} is not KEY=VALUE, as in train_cfg.max_')
        for option in ('foo', '=3', '..=3', 'model.=3', '.model=3', 'train_cfg..max_epochs=3')
    ),
    ("train base.py --cfg-options 'a=[1,2'", '--cfg-options: a=[1,2: Imbalanced brackets exist in [1,2'),
    ("train base.py --cfg-options 'a=(1,2]'", '--cfg-options: a=(1,2]: Imbalanced brackets exist in (1,2]'),
    ('train base.py --cfg-options train_cgf.max_epochs=2', 'there is no train_cgf, and nothing reads it; nearest: tr'),
    ('train base.py --cfg-options model.type.a=1', '--cfg-options model.type.a=1: '),
    ('train base.py --cfg-options model=', "base.py: model must be a dict, got ''"),
    ('train base.py --cfg-options model.backbone=3', 'base.py: model: TypeError: cfg should be a dict'),
    ('train base.py --cfg-options model.backbone.depth=nan', 'base.py: model.backbone: KeyError: invalid depth nan'),
    ('train base.py --cfg-options model.bakbone.depth=34', "argument 'bakbone'; nearest: backbone"),
    ('train base.py --cfg-options optim_wrapper.optimizer.lrr=1', "argument 'lrr'; nearest: lr"),
    ('train base.py --cfg-options param_scheduler.7.gamma=1', '--cfg-options param_scheduler.7.gamma=1: KeyError'),
    ('train base.py --cfg-options param_scheduler.x.gamma=1', '--cfg-options param_scheduler.x.gamma=1: TypeError'),
    ('train base.py --cfg-options custom_hooks.0.type=Hook', '--cfg-options custom_hooks.0.type=Hook: KeyError'),
    ("train base.py --cfg-options 'train_cfg={{max_epochs:1}}'", 'base.py: train_cfg must be a dict, got '),
    ('train base.py --cfg-options train_cfg.max_epochs=0', 'base.py: train_cfg.max_epochs must be a whole number'),
    # given twice, both count
    ('train base.py --cfg-options train_cfg.max_epochs=0 --cfg-options work_dir=x', 'train_cfg.max_epochs must be'),
    ('train base.py --cfg-options train_cfg.max_epochs=2 train_cfg.max_epochs=0', 'train_cfg.max_epochs must be'),
    ('train base.py --cfg-options load_from=~/gone.pth', 'base.py: load_from: checkpoint'),
    ('norms base.py --cfg-options modle.backbone.depth=34', 'nearest: model'),
    ('norms base.py --cfg-options model.backbone.depth=9999', 'base.py: model.backbone: KeyError: invalid depth 9999'),
    ('norms base.py --layers x', 'unrecognized arguments: x'),
    ('norms no_model.py', 'no_model.py has no model'),
    # test: what is no checkpoint, and checkpoints of something else
    ('test base.py', 'the following arguments are required: checkpoint'),
    ("test base.py ''", 'checkpoint has no name'),
    ('test base.py gone.pth', 'checkpoint gone.pth does not exist'),
    ('test base.py folder.pth', 'checkpoint folder.pth is a folder: give the file in it'),
    ('test base.py loop.pth', 'checkpoint loop.pth is a link to loop.pth, where no file is'),
    ('test base.py dangling.pth', 'checkpoint dangling.pth is a link to gone.pth, where no file is'),
    ('test base.py fifo.pth', 'checkpoint fifo.pth is no file, but a pipe or a device'),
    ('test base.py empty.pth', 'empty.pth cannot be loaded as a checkpoint: it is empty'),
    *(
        (f'test base.py {name}', f'{name} cannot be loaded as a checkpoint: it begins with b')
        for name in ('json.pth', 'csv.pth', 'yaml.pth', 'html.pth', 'png.pth', 'python.pth', 'base.py')
    ),
    ('test base.py npz.pth', 'npz.pth cannot be loaded as a checkpoint: it is a ZIP archive of something else'),
    ('test base.py zip.pth', 'zip.pth cannot be loaded as a checkpoint: it is a ZIP archive of something else'),
    ('test base.py half.pth', 'half.pth cannot be loaded as a checkpoint: its end is missing'),
    ('test base.py cut.pth', 'cut.pth cannot be loaded as a checkpoint: its end is missing'),
    ('test base.py pickle.pth', 'pickle.pth cannot be loaded as a checkpoint: it is damaged, or holds more than'),
    ('test base.py list.pth', 'list.pth is not a checkpoint: it holds a list'),
    ('test base.py tensor.pth', 'tensor.pth is not a checkpoint: it holds a Tensor'),
    ('test base.py none.pth', 'none.pth is not a checkpoint: it holds a NoneType'),
    ('test base.py texts.pth', 'texts.pth is not a checkpoint: weights are tensors, and backbone.conv1.weight is of t'),
    ('test base.py numbers.pth', 'numbers.pth is not a checkpoint: weights go by names, and 0 is none'),
    ('test base.py no_dict.pth', 'no_dict.pth is not a checkpoint: its state_dict is of type str'),
    ('test base.py optimizer.pth', 'optimizer.pth does not fit the config: missing 124 of 144 keys'),
    ('test base.py no_weights.pth', 'no_weights.pth does not fit the config: missing 124 of 144 keys'),
    ('test base.py backbone.pth', 'backbone.pth does not fit the config: missing 124 of 144 keys'),
    ('test base.py nan.pth', 'nan.pth gives no test: NaN, infinity or a negative variance in 124 of its tensors'),
    ('test base.py negative.pth', 'negative variance in 1 of its tensors; first: backbone.bn1.running_var'),
    ('test base.py wider.pth', 'wider.pth does not fit the config: size mismatch for backbone.conv1.weight'),
    ('test base.py gn.pth', 'gn.pth does not fit the config: missing 74 of 144 keys'),
    ('test seg.py base.pth', 'base.pth does not fit the config: '),
    ('test base.py http://127.0.0.1:9/x.pth', 'cannot be loaded as a checkpoint: URLError: <urlopen error'),
    ('test base.py file:///gone.pth', 'file:///gone.pth cannot be loaded as a checkpoint: FileNotFoundError'),
    ('test base.py base.pth --tta', '--tta needs tta_model and tta_pipeline in base.py'),
    ('test base.py base.pth --work-dir file', 'file is a file, not a folder'),
    ('test base.py base.pth --cfg-options test_dataloader.batch_size=0', 'test_dataloader.batch_size must be'),
    ('test base.py base.pth --cfg-options test_evaluator.ann_file=gone.json', 'ann_file of test_evaluator does not'),
    ('test base.py base.pth --cfg-options test_cfg.type=Gone', "base.py: test_cfg: nothing is registered as 'Gone'"),
    # diagnose and statistics
    ('diagnose base.py gone.pth', 'checkpoint gone.pth does not exist'),
    ('diagnose base.py base.pth --batches 0', 'argument --batches: must be 1 or more, got 0'),
    ('diagnose base.py base.pth --batch-size x', 'argument --batch-size: must be 1 or more, got x'),
    ('diagnose base.py base.pth --seed x', "argument --seed: invalid int value: 'x'"),
    ('diagnose base.py base.pth --apply gone', "argument --apply: invalid choice: 'gone' "),
    ('diagnose base.py base.pth --out file', 'file is a file, not a folder'),
    ('diagnose base.py list.pth', 'list.pth is not a checkpoint: it holds a list'),
    ('diagnose base.py gn.pth', 'gn.pth does not fit the config: missing 74 of 144 keys'),
    ('diagnose gn.py gn.pth', 'has no layer with running statistics'),
    ('diagnose base.py base.pth --cfg-options test_dataloader.dataset.data_root=nowhere/', 'the data set is missing'),
    ('statistics', 'the following arguments are required: COMMAND'),
    ('statistics shiftt base.py base.pth', "argument COMMAND: invalid choice: 'shiftt'"),
    ('statistics shift base.py', 'the following arguments are required: checkpoint'),
    ('statistics shift base.py base.pth --out file/x.json', 'file is a file, not a folder'),
    ('statistics recollect base.py base.pth', 'the following arguments are required: --out'),
    ('statistics recollect base.py base.pth --out x.pth --data vall', "argument --data: invalid choice: 'vall'"),
    ('statistics recollect base.py base.pth --out base.pth', 'base.pth exists already and is not overwritten'),
    ('statistics recollect base.py base.pth --out loop.pth', 'loop.pth exists already and is not overwritten'),
    ('statistics recollect base.py base.pth --out x.txt', 'x.txt would be a checkpoint: its name must end in .pth'),
    ('statistics evalnorm base.py base.pth --out x.pth --mode gone', "argument --mode: invalid choice: 'gone'"),
    ('statistics perturb base.py base.pth --deltas x', "argument --deltas: invalid float value: 'x'"),
    ('statistics perturb base.py base.pth --blocks 1 --deltas 2', 'must be in [0, 1]'),
    ('statistics perturb base.py base.pth --blocks 1 --deltas nan', 'must be in [0, 1]'),
    ('statistics perturb base.py base.pth --blocks 0', 'argument --blocks: must be 1 or more, got 0'),
    ('statistics perturb base.py base.pth --blocks 999', 'the first 999 blocks were asked for; this ResNet has 8'),
    ('statistics perturb base.py base.pth --noises 0', 'argument --noises: must be 1 or more, got 0'),
    # weights
    ('weights', 'the following arguments are required: command'),
    ('weights show sn.py', 'the following arguments are required: CHECKPOINT'),
    ('weights show gone.py sn.pth', 'config gone.py does not exist'),
    ('weights show unknown.py sn.pth', "model: nothing is registered as 'Unheard'"),
    ('weights show sn.py gone.pth', 'checkpoint gone.pth does not exist'),
    ('weights show sn.py sn.pth gone.pth', 'checkpoint gone.pth does not exist'),
    ('weights show sn.py html.pth', 'html.pth cannot be loaded as a checkpoint'),
    ('weights show sn.py lacking.pth', 'backbone.layer3.1.conv2.weight'),
    ('weights show sn.py base.pth', 'backbone.bn1.mean_weight. It is a checkpoint of another network, perhaps one wit'),
    ('weights show base.py base.pth', 'base.py has no SN, SW or RBN layers'),
    ('weights show sn.py sn.pth --spread', '--spread needs RBN layers with a scaling calibration; sn.py has none'),
    ('weights show sn.py sn.pth --out file', 'file is a file, not a folder'),
    *(
        (f'weights {step} sn.py {name}.pth{out}', f'{name}.pth is not a checkpoint: {message}')
        for step, out in (('show', ''), ('harden', ' x.pth'))
        for name, message in (('texts', 'weights are tensors'), ('no_dict', 'its state'), ('numbers', 'weights go'))
    ),
    ('weights harden base.py base.pth x.pth', 'base.py has no SN layers: only their ratios can be hardened'),
    ('weights harden rbn.py rbn.pth x.pth', 'rbn.py has no SN layers: only their ratios can be hardened'),
    ('weights harden sn.py base.pth x.pth', 'backbone.bn1.mean_weight'),
    ('weights harden sn.py lacking.pth x.pth', 'backbone.layer3.1.conv2.weight'),
    ('weights harden sn.py sn.pth x', 'x would be a checkpoint: its name must end in .pth'),
    ('weights harden sn.py sn.pth sn.pth', 'sn.pth exists already and is not overwritten'),
    # convert
    ('convert base.pth x.pth', 'the following arguments are required: --to'),
    ('convert gone.pth x.pth --to SN', 'checkpoint gone.pth does not exist'),
    ('convert . x.pth --to SN', 'checkpoint . is a folder: give the file in it'),
    ('convert png.pth x.pth --to SN', 'png.pth cannot be loaded as a checkpoint: it begins with'),
    ('convert list.pth x.pth --to SN', 'list.pth: it is not a checkpoint: it holds a list'),
    ('convert optimizer.pth x.pth --to SN', 'optimizer.pth: it holds no tensors by name, only optimizer'),
    ('convert no_weights.pth x.pth --to SN', 'no_weights.pth: it holds no tensors by name, only state_dict'),
    ('convert nan.pth x.pth --to SN', 'nan.pth: 100 of its tensors hold NaN or infinity; first: backbone.conv1.weight'),
    ('convert base.pth base.pth --to SN', 'base.pth exists already and is not overwritten'),
    ('convert base.pth dangling.pth --to SN', 'dangling.pth exists already and is not overwritten'),
    ('convert base.pth x.pt --to SN', 'x.pt would be a checkpoint: its name must end in .pth'),
    ('convert base.pth file/x.pth --to SN', 'file is a file, not a folder'),
    ('convert base.pth x.pth --to PM', '--to PM: not a norm to convert to; choose one of BN, EN, '),
    ('convert base.pth x.pth --to PN', '--to PN: no tensors make PN compute what a network of another norm did'),
    ("convert base.pth x.pth --to ''", '--to : not a norm to convert to; choose one of BN, EN, '),
    ('convert base.pth x.pth --to SN --from sn', 'base.pth: it is not in the layout sn, which has'),
    ('convert base.pth x.pth --to SN --from gone', "argument --from: invalid choice: 'gone'"),
    ('convert base.pth x.pth --to SN --config gone.py', 'config gone.py does not exist'),
    ('convert base.pth x.pth --to SN --config base.pth', 'base.pth cannot be read as a config: '),
    ('convert base.pth x.pth --to SN --whole', '--whole converts the whole network of a config: it needs --config'),
    ('convert base.pth x.pth --to SN --source-prefix gone', 'gone'),
    *(
        (f'convert base.pth x.pth --to SN --bn-share {share}', 'the share of BN must be above 0 and at most 1, got')
        for share in ('2', '-1', 'nan')
    ),
    ('convert sn.pth x.pth --to BN', 'sn.pth: its norms cannot become BN: SN whose ratios do not'),
    # publish
    ('publish gone.pth', 'checkpoint gone.pth does not exist'),
    ('publish folder.pth', 'checkpoint folder.pth is a folder: give the file in it'),
    ('publish png.pth', 'png.pth cannot be loaded as a checkpoint: it begins with'),
    ('publish tensor.pth', 'tensor.pth is not a checkpoint: it holds a Tensor'),
    ('publish no_weights.pth', 'no_weights.pth has no weights: it has none'),
    ('publish base.pth --only gone', 'base.pth has no weights under gone.: it has backbone, neck, bbox_head'),
    ('publish nan.pth', 'nan.pth holds NaN or infinity in 124 of its tensors; first: backbone.conv1.weight'),
    ('publish base.pth --out x.txt', 'x.txt would be a checkpoint: its name must end in .pth'),
    ('publish base.pth --out file/x.pth', 'file is a file, not a folder'),
    ('publish base.py', 'base.py would be a checkpoint: its name must end in .pth'),
    # benchmark
    ('benchmark --norms NoNorm', '--norms NoNorm: no norm is registered by this name; those of mmnorm are Fro'),
    ('benchmark --norms ReLU', '--norms ReLU: '),
    ('benchmark --norms PerLevel', '--norms PerLevel: it cannot be built by its name alone ('),
    ('benchmark --device cuda:99', '--device cuda:99: PyTorch cannot compute on it here ('),
    ('benchmark --device zz', '--device zz: PyTorch cannot compute on it here (Expected one of cpu, cuda'),
    ('benchmark --device meta', '--device meta: PyTorch cannot compute on it here ('),
    *(
        (f'benchmark --shapes {shape}', f"'{shape}' is not a shape; use N,C,H,W, such as 2,64,200,200")
        for shape in ('2,x', '2', '2,0,4,4', '1,2,3,4.5', '99999999999999999999,1,1,1')
    ),
    ('benchmark --norms SN --shapes 1000000,1000000,1000,1000 --out {to}', 'out of memory: RuntimeError: '),
    *(
        (f'benchmark --{option} {value}', f'argument --{option}: must be 1 or more, got {value}')
        for option, value in (('rounds', '0'), ('rounds', '-3'), ('rounds', '1.5'), ('threads', '0'), ('threads', 'x'))
    ),
    ('benchmark --image-size 0 --model', 'argument --image-size: must be 1 or more, got 0'),
    ('benchmark --threads 99999999999', '--threads 99999999999: Overflow'),
    ('benchmark --out file', 'file is a file, not a folder'),
    ('benchmark --out file/below', 'file/below cannot be made: {folder}/file is a file, not a folder'),
    # report
    ('report', 'the following arguments are required: WORK_DIR'),
    ('report nowhere', 'nowhere is not a folder'),
    ('report file', 'file is a file, not a folder'),
    ('report loop', 'loop is a file, not a folder'),
    ('report empty', 'empty is not the work dir of a run: it has neither a config (*.py) nor logs (<timestamp>/vis_da'),
    ('report a --names x y', '2 --names for 1 work dirs'),
    ('report a --images -1', '--images -1 is negative'),
    ('report a --images x', "argument --images: invalid int value: 'x'"),
    *((f'report a --score-thr {value}', f'--score-thr {value} is not from 0 to 1') for value in ('nan', '2.0', '-1.0')),
    # zoo
    ('zoo', 'the following arguments are required: command'),
    ('zoo list no_such', 'no_such is not a config of the zoo'),
    ('zoo list --norm XX', '--norm XX has no config'),
    ('zoo list --paper gone', "argument --paper: invalid choice: 'gone'"),
    (
        'zoo list --paper evalnorm --norm SN',
        'no config matches --paper evalnorm and --norm SN; there are 53 without --paper evalnorm, 48 without --norm SN',
    ),
    ('zoo list mask_rcnn_xbn_r50 --task panoptic', '1 without --task panoptic segmentation'),
    ('zoo table --write --paper bgn', '--write writes the pages of all configs'),
    ('zoo check --jobs 0', 'argument --jobs: must be 1 or more, got 0'),
    ('zoo sweep no_such 2', 'is not a config of the zoo'),
    ('zoo sweep mask_rcnn_xbn_r50 2', 'has no search'),
    ('zoo sweep NAME 0', 'NUM_PROCESSES: must be 1 or more, got 0'),
    ('zoo sweep NAME two', 'NUM_PROCESSES: must be 1 or more, got two'),
    ('zoo sweep NAME 1 --cfg-options foo', 'foo is not KEY=VALUE'),
    ('zoo sweep faster_rcnn_bn_r50_scratch_8x2 1 --work-dir file', 'file is a file, not a folder'),
    # digits
    ('digits file', 'file exists and was not made by make_digits'),
    ('digits loop', 'loop is a link to loop, where no folder is'),
    ('digits .', '{folder} exists and was not made by make_digits'),
    ('digits file/new', 'file is a file, not a folder'),
    ('digits new --train 0', 'num_train=0: must be at least 1'),
    ('digits new --train 1.5', "argument --train: invalid int value: '1.5'"),
    ('digits new --image-size 64', 'a digit of 77 pixels does not fit into image_size=64'),
    ('digits new --digits-per-image 3 2', 'digits_per_image=[3, 2]: expected (low, high) with low <= high'),
    ('digits new --digit-size -1 9', 'digit_size=-1: must be at least 8'),
    ('digits new --seed 99999999999', 'seed=99999999999: must be from 0 to 4294967295'),
    ('digits new --corruption fog', "corruption='fog': choose from noise, blur, contrast or None"),
    ('digits new --severity 6 --corruption blur', 'severity=6: must be from 0 to 5'),
    ('digits new --layouts voc', "layouts=['voc']: choose one or more from"),
    ('digits new --layouts imagenet coco', 'takes digits_per_image=(1, 1) and no other layout beside it'),
    ('digits new --layouts imagenet --digits-per-image 1 2', 'in the layout imagenet an image is of one class'),
    # pretrain
    ('pretrain gone', 'gone is not a config of the zoo'),
    ('pretrain base.py', 'base.py is not a config of the zoo'),
    ('pretrain mask_rcnn_frozenbn_r50', 'it starts from weights that are released: torchvision ResNet-50 (BN)'),
    ('pretrain mask_rcnn_xbn_r50_digits', 'it is trained from scratch'),
    ('pretrain NAME --cfg-options foo', 'foo is not KEY=VALUE'),
    ('pretrain NAME --processes 0', 'argument --processes: must be 1 or more, got 0'),
    *(
        (f'pretrain mask_rcnn_xbn_r50_digits_pretrained --from {name}', message)
        for name, message in (
            ('gone.pth', 'checkpoint gone.pth does not exist'),
            ('empty.pth', 'empty.pth cannot be loaded as a checkpoint: it is empty'),
            ('png.pth', 'png.pth cannot be loaded as a checkpoint'),
            ('no_weights.pth', 'no_weights.pth has no weights'),
            ('base.pth', 'base.pth is not what mask_rcnn_xbn_r50_digits_pretrained starts from'),
        )
    ),
    # check-data
    ('check-data base.py --splits gone', "argument --splits: invalid choice: 'gone'"),
    ('check-data no_model.py --splits val', 'no_model.py has no val_dataloader'),
    ('check-data base.py --maps 0', 'argument --maps: must be 1 or more, got 0'),
    ('check-data base.py --out folder.py', '--out folder.py is a folder, not a file'),
    ('check-data base.py --out away/data.json', '--out away/data.json: there is no folder away'),
    ('check-data base.py --cfg-options train_dataloader=5', 'base.py: train_dataloader must be a dict, got 5'),
    ('check-data base.py --cfg-options train_dataloader.dataset=5', 'base.py: train_dataloader.dataset must be a dict'),
    (
        'check-data base.py --cfg-options train_dataloader.dataset.data_prefix=5',
        'base.py: train_dataloader.dataset.data_prefix must be a dict, got 5',
    ),
    (
        'check-data base.py --cfg-options train_dataloader.dataset.metainfo.classes=5',
        'metainfo of the config has classes=5: it must be names',
    ),
    (
        'check-data base.py --cfg-options train_dataloader.dataset.ann_file=gone.json',
        'gone.json of train_dataloader does not exist',
    ),
    *(
        (
            f'check-data base.py --cfg-options train_dataloader.dataset.ann_file={{folder}}/{name}.json',
            f'{name}.json: {message}',
        )
        for name, message in (
            ('empty', 'this is not JSON: Expecting value at line 1, column 1'),
            ('cut', 'this is not JSON: Expecting property name'),
            ('list', "this is no annotation file: at its top is a list, not COCO's object"),
            ('bom', 'this is not JSON: Unexpected UTF-8 BOM'),
            ('deep', 'this is no annotation file: its JSON is nested too deeply'),
        )
    ),
]  # fmt: skip


def write(case, folder, to):
    """The config (Path) of a case."""
    config = to / 'case.py'
    text = case.config or ''
    config.write_text(text if case.whole else f'_base_ = {str(folder / "base.py")!r}\n{text}\n')
    return config


def files(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob('*')}


@pytest.mark.parametrize('case', CASES, ids=lambda case: f'{case.tool} {case.config}'[:60])
def test_configs(case, folder, tmp_path, call):
    config = write(case, folder, tmp_path)
    status, told = call(case.tool, str(config), *['base.pth'] * (case.tool in ('test', 'diagnose')))
    assert status == 2 and len(told) == 1, told
    assert case.message.format(config=config) in told[0]


@pytest.mark.parametrize(('line', 'message'), COMMANDS, ids=[line for line, _ in COMMANDS])
def test_commands(line, message, folder, tmp_path, call):
    before = files(folder)
    status, told = call(*shlex.split(line.format(folder=folder, to=tmp_path)))
    assert status == 2 and len(told) == 1, told
    assert message.format(folder=folder) in told[0]
    assert files(folder) == before  # nothing was written or run


def test_a_check_finds_them_too(folder, tmp_path, capsys, call):
    wrong = 'train_cfg = dict(max_epochs=-1)\ntrain_dataloader = dict(batch_size=0)'
    config = write(train(wrong, ''), folder, tmp_path)
    args = ['train', str(config), '--work-dir', str(tmp_path / 'work_dir')]
    assert main(args) == 2
    found = capsys.readouterr().err
    assert main([*args, '--check', '2']) == 2
    assert capsys.readouterr().err == found and found.count(f'{config}: ') == 2  # a line for each


def test_traceback_shows_where(folder, tmp_path, capsys, call):
    config = write(train(NORM("type='SM'"), ''), folder, tmp_path)
    args = ['train', str(config), '--work-dir', str(tmp_path / 'work_dir')]
    assert main(args) == 2 and 'Traceback' not in capsys.readouterr().err
    assert main([*args, '--traceback']) == 2
    said = capsys.readouterr().err
    assert 'in build_norm_layer' in said and said.splitlines()[-1].startswith(f'error: {config}: model.backbone')


def test_a_bug_keeps_its_traceback(folder, monkeypatch, call):
    """Of ours, and of a host while a loop runs."""
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr('mmnorm.engine.load_config', lambda *_: 1 / 0)
        call('train', 'base.py')

    def train_step(*_, **__):
        raise ValueError('of a host')

    monkeypatch.setattr('mmdet.models.RetinaNet.train_step', train_step)
    with pytest.raises(ValueError, match='of a host'):
        call('train', 'base.py')


def test_ranks_leave_their_message_to_torchrun(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(tmp_path / 'error.json'))
    monkeypatch.setenv('RANK', '1')
    assert main(['norms', 'gone.py']) == 2 and capsys.readouterr().err == ''
    told = json.loads((tmp_path / 'error.json').read_text())['message']['message']
    assert told == 'error: config gone.py does not exist'
    monkeypatch.delenv('TORCHELASTIC_ERROR_FILE')
    assert main(['norms', 'gone.py']) == 2
    assert capsys.readouterr().err == f'rank 1: {told}\n'


@pytest.mark.parametrize(
    ('ranks_of', 'status', 'said'),
    [
        ([(2, 'it'), (-15, None)], 2, 'error: it'),
        ([(1, 'others are gone'), (2, 'it')], 2, 'error: it'),  # which is why they are
        ([(1, 'others are gone'), (1, None)], 1, 'exitcode  : 1 (pid: 2)'),
        ([(1, 'others are gone'), (1, 'others are gone')], 1, 'error: others are gone'),
        ([(1, 'others are gone'), (130, None)], 130, ''),
        ([(-9, None), (-15, None)], 1, 'Signal 9'),
    ],
)
def test_what_torchrun_says_of_ranks(tmp_path, monkeypatch, capsys, ranks_of, status, said):
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    failures = {}
    for rank, (exitcode, message) in enumerate(ranks_of):
        file = tmp_path / f'{rank}.json'
        if message:
            about = dict(message=f'error: {message}', extraInfo=dict(timestamp=str(rank)))
            file.write_text(json.dumps(dict(message=about)))
        failures[rank] = ProcessFailure(rank, rank + 1, exitcode, str(file))

    def fail():
        raise ChildFailedError('name', failures)

    monkeypatch.setattr(torchrun, 'main', fail)
    assert ranks.main() == status
    found = capsys.readouterr().err.strip()
    assert said in found and ('\n' in found) == (not said.startswith('error') and status == 1)


def test_machines_that_do_not_meet(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, 'argv', ['ranks.py', '--nnodes=2', f'--master_port={free_port()}', '--rdzv_conf=timeout=1', '-m', 'this']
    )
    assert ranks.main() == ranks.LEFT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: the machines of this run did not meet: Timed out after ') and '1/2 clients' in line


@pytest.mark.parametrize(
    'error, reason',
    [
        (
            RuntimeError('[/a/gloo/pair.cc:5] Connection closed by peer [::1]:4. It'),
            'Connection closed by peer [::1]:4',
        ),
        (torch.distributed.DistNetworkError('the client has timed out'), 'the client has timed out'),
        (RuntimeError('the size of tensor a'), None),
    ],
    ids=['gloo', 'torch', 'another'],
)
def test_that_another_process_is_gone_is_told(monkeypatch, capsys, error, reason):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr('mmnorm.engine.networks.read_config', fail)
    if reason is None:
        with pytest.raises(RuntimeError, match='the size of tensor a'):
            main(['norms', 'c.py'])
    else:
        assert main(['norms', 'c.py']) == ranks.LEFT
        told = (
            f'error: another process of this run is gone, or did not answer in time: {type(error).__name__}: {reason}. '
        )
        assert capsys.readouterr().err.startswith(told)


@pytest.mark.e2e
def test_ranks_tell_a_mistake_once(tool, digits_config):
    config = digits_config("model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='SM')))")
    done = tool('dist_train.sh', config, 2)
    assert done.returncode == 2 and 'Traceback' not in done.stdout and 'FAILED' not in done.stdout
    assert done.stdout.count('error: ') == 1 and "nothing is registered as 'SM'" in done.stdout
