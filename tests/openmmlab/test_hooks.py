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
from torch import nn

from mmnorm.openmmlab.hooks import EstimationShiftHook, RecollectHook, SyncStatisticsHook

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
    config = Config.fromfile(Path(__file__).parents[2] / 'configs/_base_/live_norm.py')
    hooks = {hook['type'].rpartition('.')[2]: registry.HOOKS.get(hook['type']) for hook in config.custom_hooks}
    assert hooks == dict(SyncStatisticsHook=SyncStatisticsHook)
    assert registry.HOOKS.get(f'{place}SyncStatisticsHook') is SyncStatisticsHook


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
