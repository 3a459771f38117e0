"""The hooks in real trainings: what they log, and that they leave the training's course alone."""

import itertools
import json
import logging
from pathlib import Path

import pytest
import torch
from mmengine import registry
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner as StockRunner
from torch import nn
from torch.utils.data import DataLoader

from mmnorm.norms import RBN, SN, checks
from mmnorm.openmmlab.hooks import EstimationShiftHook, ListNormsHook, RecollectHook, SyncStatisticsHook

EXTRA = """
train_cfg = dict(max_epochs=2, val_interval=1)
log_level = 'ERROR'
model = dict(backbone=dict(depth=50, base_channels=8, xbn=dict(norm_cfg=dict(type='GN', num_groups=8))),
             neck=dict(in_channels=[32, 64, 128, 256]))
"""
HOOKS = """
custom_hooks = [dict(type='RecollectHook', batches=3), dict(type='EstimationShiftHook')]
"""


@pytest.mark.parametrize('place', ['', 'mmnorm.openmmlab.hooks.', 'mmnorm.statistics.'])
def test_hooks_are_found_by_every_name_that_configs_have(place):
    assert registry.HOOKS.get(f'{place}SyncStatisticsHook') is SyncStatisticsHook


class Held(BaseModel):
    """A model as norm_eval makes it."""

    def __init__(self, held):
        super().__init__()
        self.norms, self.held = nn.Sequential(SN(2), RBN(2), nn.BatchNorm2d(2)), held

    def train(self, mode=True):
        super().train(mode)
        if self.held:
            self.norms.eval()
        return self

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.norms(inputs).square().mean())


@pytest.mark.parametrize('held', [True, False])
@pytest.mark.parametrize('live', [True, False])
def test_what_import_adds_to_a_stock_runner(tmp_path, monkeypatch, recwarn, held, live):
    """The norms and what norm_eval means are told in the log when a training starts, whatever happens to warnings."""
    monkeypatch.setattr(checks, '_warned', set())
    runner = StockRunner(
        model=Held(held),
        work_dir=str(tmp_path),
        experiment_name=f'{held} {live}',
        train_dataloader=DataLoader([dict(inputs=torch.randn(2, 4, 4)) for _ in range(2)], batch_size=2),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        cfg=Config(dict(live_norm=dict(norm_eval=False)) if live else {}),
    )
    runner.train()
    kinds = [type(hook) for hook in runner.hooks]
    assert kinds.count(ListNormsHook) == 1 and kinds.count(SyncStatisticsHook) == live
    (log,) = tmp_path.rglob('*.log')
    log = log.read_text()
    assert ('1 SN (held), 1 RBN (held), 1 BN (held)' if held else '1 SN, 1 RBN, 1 BN') in log
    for name in ('SN', 'RBN'):
        told = f'WARNING - {name} is in evaluation mode while the network trains, as norm_eval=True does'
        assert log.count(told) == held and (not held or log.index(told) < log.index('Epoch(train)'))
    assert not [warning for warning in recwarn if 'evaluation mode' in str(warning.message)]


@pytest.mark.e2e
@pytest.mark.timeout(400)
def test_recollection_and_shift_in_a_training(forked_tool, digits_config, tmp_path):
    states = {}
    for name, extra in (('plain', EXTRA + 'custom_hooks = []'), ('hooked', EXTRA + HOOKS)):
        done = forked_tool('train.py', digits_config(extra, name=f'{name}.py'))
        assert done.returncode == 0, done.stdout
        path = tmp_path / 'work_dirs' / name
        states[name] = torch.load(path / 'epoch_2.pth', weights_only=False)['state_dict']
    differing = {
        key.rpartition('.')[2]
        for key, value in states['plain'].items()
        if not torch.equal(value, states['hooked'][key])
    }
    # the weights are bit-identical: only what is evaluated with changed
    assert differing == {'running_mean', 'running_var'}
    (scalars,) = Path(tmp_path, 'work_dirs/hooked').glob('*/vis_data/scalars.json')
    logged = [json.loads(line) for line in scalars.read_text().splitlines()]
    of_validations = [record for record in logged if 'estimation_shift/backbone.bn1/esm_sigma' in record]
    assert [record['step'] for record in of_validations] == [8, 16]
    for record in of_validations:
        layers = {key.split('/')[1] for key in record if key.startswith('estimation_shift/')}
        assert layers and all(record[f'estimation_shift/{name}/relative_mu'] >= 0 for name in layers)
        assert len(layers) == sum('running_mean' in key for key in states['plain'])


@pytest.mark.e2e
@pytest.mark.timeout(400)
def test_iteration_based_training_and_fixed_statistics(forked_tool, digits_config, tmp_path):
    """Recollected before each validation; and with norm_eval=True, as stock detectors have it, no training ends."""
    iterations = (
        EXTRA
        + HOOKS
        + """
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=4, val_interval=2)
param_scheduler = []
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=2), logger=dict(interval=1))
log_level = 'INFO'
"""
    )
    done = forked_tool('train.py', digits_config(iterations, name='iterations.py'))
    assert done.returncode == 0, done.stdout
    steps = [
        next((step for step in ('recollected from', '(val)') if step in line), None)
        for line in done.stdout.splitlines()
    ]
    steps = [step for step, _ in itertools.groupby(filter(None, steps))]
    assert steps == ['recollected from', '(val)'] * 2
    fixed = EXTRA + HOOKS + "model['backbone'].update(norm_eval=True)\ntrain_cfg = dict(max_epochs=1)"
    done = forked_tool('train.py', digits_config(fixed, name='fixed.py'))
    assert done.returncode == 0 and (tmp_path / 'work_dirs/fixed/epoch_1.pth').exists(), done.stdout
    assert 'training holds all running statistics fixed' in done.stdout


class Runner:
    """What hooks ask a runner for."""

    def __init__(self, model, hooks=()):
        self.model, self.hooks, self.train_loop, self.val_interval = model, hooks, None, 3


def test_checkpointed_statistics_by_a_line_of_a_config(caplog):
    runner = Runner(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    runner.logger = logging.getLogger('test')
    with caplog.at_level(logging.INFO):
        registry.HOOKS.build(dict(type='CheckpointedStatisticsHook')).before_train(runner)
    assert 'of 1 stock norms' in caplog.text
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    torch.utils.checkpoint.checkpoint(runner.model, x, use_reentrant=False).square().sum().backward()
    assert runner.model[1].num_batches_tracked == 1


def test_averaged_weights_are_refused():
    with pytest.raises(ValueError, match='leave out one of the two'):
        RecollectHook().before_train(Runner(nn.BatchNorm2d(1), [EMAHook()]))


def test_a_model_without_bn_trains_on():
    runner = Runner(nn.Sequential(nn.GroupNorm(1, 3)))
    with pytest.warns(UserWarning, match='has no layer with running statistics'):
        RecollectHook().before_train(runner)
        EstimationShiftHook().before_val_epoch(runner)
    EstimationShiftHook().after_val_epoch(runner)
