"""What a user does wrong is told in one message, with the file and the key, and ends with exit status 2."""

import json
import os
import sys
from typing import NamedTuple

import pytest
import torch
from mmengine.config import Config

from mmnorm.cli import main, ranks
from tests.processes import ROOT, free_port

SMALL = "dict(type='RetinaNet', data_preprocessor=dict(type='DetDataPreprocessor'), "
SMALL += "backbone=dict(type='ResNet', depth=18, base_channels=4, norm_cfg=dict(type='BN')), "
SMALL += "neck=dict(type='FPN', in_channels=[4, 8, 16, 32], out_channels=8, num_outs=5), "
SMALL += "bbox_head=dict(type='RetinaHead', num_classes=10, in_channels=8, feat_channels=8, stacked_convs=1))"


class Case(NamedTuple):
    """A row: a tool, what is wrong in its config or behind it, and what it says."""

    tool: str
    config: str | None  # put behind a config that works; None: the message needs no config
    message: str  # part of what is told; {config} stands for the file
    args: str = ''
    whole: bool = False  # the text is the whole config


def at(key, reason):
    return f'{{config}}: {key}: {reason}'


NORM = 'model = dict(backbone=dict(norm_cfg=dict(_delete_=True, {})))'.format
UNKNOWN_NORM = at('model.backbone.norm_cfg', "nothing is registered as 'SM'; nearest: SN")
DATA = 'train_dataloader = dict({})'.format
CASES = [
    # what cannot be read
    Case('train', 'train_cfg = dict(', "{config} cannot be read as a config: SyntaxError: '(' was never closed"),
    Case('train', 'train_cfg = undefined', "{config} cannot be read as a config: NameError: name 'undefined'"),
    Case('train', "_base_ = './gone.py'", '{config} cannot be read as a config: FileNotFoundError', whole=True),
    Case('train', "_base_ = 'mmdet::gone.py'", '{config} cannot be read as a config', whole=True),
    Case('train', "model = dict(type=dict(a=1))", '{config} cannot be read as a config: TypeError: type='),
    Case('train', "custom_imports = dict(imports=['gone'], allow_failed_imports=False)", 'import custom modules'),
    Case('train', None, 'gone.py cannot be read as a config: FileNotFoundError', 'gone.py'),
    Case('train', None, 'cannot be read as a config', str(ROOT)),
    Case('norms', None, 'config gone.py does not exist', 'gone.py'),
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
    Case('train', "load_from = 'gone.pth'", '{config}: load_from: gone.pth does not exist'),
    Case('test', None, 'checkpoint gone.pth does not exist', '{base} gone.pth'),
    Case('diagnose', None, 'checkpoint gone.pth does not exist', '{base} gone.pth'),
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
    # --cfg-options
    Case('train', None, '--cfg-options: foo is not KEY=VALUE', '{base} --cfg-options foo'),
    Case('train', None, 'there is no train_cgf, and nothing', '{base} --cfg-options train_cgf.max_epochs=2'),
    Case('norms', None, 'nearest: model', '{base} --cfg-options modle.backbone.depth=34'),
    Case('train', None, '--cfg-options model.type.a=1: ', '{base} --cfg-options model.type.a=1'),
    Case('train', None, 'train_cfg.max_epochs must be', '{base} --cfg-options train_cfg.max_epochs=0'),
    Case('test', None, 'test_dataloader.batch_size must be', '{base} k.pth --cfg-options test_dataloader.batch_size=0'),
    Case('train', None, '--auto-scale-lr needs auto_scale_lr', '{base} --auto-scale-lr'),
    Case('train', None, '--resume: gone.pth does not exist', '{base} --resume gone.pth'),
]  # fmt: skip


@pytest.fixture(scope='module')
def base(digits, tmp_path_factory):
    """A config that works, without parents, so that cases are read quickly; beside it a checkpoint that is empty."""
    folder = tmp_path_factory.mktemp('mistakes')
    cfg = Config.fromfile(ROOT / 'configs/faster_rcnn_en_r50_digits.py')
    cfg.model = Config.fromstring(f'model = {SMALL}', '.py').model
    cfg.custom_hooks = []
    cfg.pop('auto_scale_lr')
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[key].dataset.data_root = str(digits / 'coco')
        cfg[key].update(num_workers=0, persistent_workers=False)
    cfg.val_evaluator.ann_file = str(digits / 'coco/annotations/instances_val2017.json')
    cfg.test_evaluator.ann_file = cfg.val_evaluator.ann_file
    cfg.dump(folder / 'base.py')
    (folder / 'k.pth').touch()
    return folder / 'base.py'


def run(case, base, folder):
    """The exit status of a case, and its config (Path)."""
    config = folder / 'case.py'
    text = case.config or ''
    config.write_text(text if case.whole else f'_base_ = {str(base)!r}\n{text}\n')
    os.chdir(base.parent)
    args = case.args.format(base=base).split() or [str(config)] + ['k.pth'] * (case.tool in ('test', 'diagnose'))
    work_dir = [] if case.tool == 'norms' else ['--work-dir', str(folder / 'work_dir')]
    try:
        return main([case.tool, *work_dir, *args]), config
    except SystemExit as end:  # argparse
        return end.code, config


@pytest.fixture
def back(monkeypatch):
    """Return to where the tests run."""
    monkeypatch.chdir(os.getcwd())


@pytest.mark.parametrize('case', CASES, ids=lambda case: f'{case.tool} {case.config or case.args}'[:60])
def test_mistake(case, base, tmp_path, capsys, back):
    status, config = run(case, base, tmp_path)
    told = [line for line in capsys.readouterr().err.splitlines() if 'error: ' in line]
    assert status == 2 and len(told) == 1, told
    assert case.message.format(config=config) in told[0]


def test_a_check_finds_them_too(base, tmp_path, capsys, back):
    config = 'train_cfg = dict(max_epochs=-1)\ntrain_dataloader = dict(batch_size=0)'
    status, config = run(Case('train', config, ''), base, tmp_path)
    found = capsys.readouterr().err
    assert main(['train', str(config), '--check', '2']) == status == 2
    assert capsys.readouterr().err == found and found.count(f'{config}: ') == 2  # a line for each


def test_traceback_shows_where(base, tmp_path, capsys, back):
    status, config = run(Case('train', NORM("type='SM'"), ''), base, tmp_path)
    assert status == 2 and 'Traceback' not in capsys.readouterr().err
    assert main(['train', str(config), '--traceback']) == 2
    said = capsys.readouterr().err
    assert 'in build_norm_layer' in said and said.splitlines()[-1].startswith(f'error: {config}: model.backbone')


def test_a_bug_keeps_its_traceback(base, monkeypatch):
    """Of ours, and of a host while a loop runs."""
    monkeypatch.setattr('mmnorm.engine.load_config', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(['train', str(base)])
    monkeypatch.undo()

    def train_step(*_, **__):
        raise ValueError('of a host')

    monkeypatch.setattr('mmdet.models.RetinaNet.train_step', train_step)
    with pytest.raises(ValueError, match='of a host'):
        main(['train', str(base), '--work-dir', str(base.parent / 'work_dir')])


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
