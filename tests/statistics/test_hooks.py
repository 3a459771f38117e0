"""The hooks in real trainings: what they log, and that they leave the training's course alone."""
import json
from pathlib import Path

import pytest
import torch


EXTRA = """
train_cfg = dict(max_epochs=2, val_interval=1)
log_level = 'ERROR'
model = dict(backbone=dict(depth=50, base_channels=8, xbn=dict(norm_cfg=dict(type='GN', num_groups=8))),
             neck=dict(in_channels=[32, 64, 128, 256]))
"""
HOOKS = """
custom_hooks = [dict(type='RecollectHook', batches=3), dict(type='EstimationShiftHook')]
"""


@pytest.mark.e2e
@pytest.mark.timeout(400)
def test_recollection_and_shift_in_a_training(tool, digits_config, tmp_path):
    states = {}
    for name, extra in (('plain', EXTRA + 'custom_hooks = []'), ('hooked', EXTRA + HOOKS)):
        done = tool('train.py', digits_config(extra, name=f'{name}.py'))
        assert done.returncode == 0, done.stdout
        path = tmp_path / 'work_dirs' / name
        states[name] = torch.load(path / 'epoch_2.pth', weights_only=False)['state_dict']
    differing = {key.rpartition('.')[2] for key, value in states['plain'].items()
                 if not torch.equal(value, states['hooked'][key])}
    # the weights are bit-identical: only what is evaluated with changed
    assert differing == {'running_mean', 'running_var', 'num_batches_tracked'}
    scalars, = Path(tmp_path, 'work_dirs/hooked').glob('*/vis_data/scalars.json')
    logged = [json.loads(line) for line in scalars.read_text().splitlines()]
    of_validations = [record for record in logged if 'estimation_shift/backbone.bn1/esm_sigma' in record]
    assert [record['step'] for record in of_validations] == [12, 24]
    for record in of_validations:
        layers = {key.split('/')[1] for key in record if key.startswith('estimation_shift/')}
        assert layers and all(record[f'estimation_shift/{name}/relative_mu'] >= 0 for name in layers)
        assert len(layers) == sum('running_mean' in key for key in states['plain'])


def test_iterations(monkeypatch):
    from mmnorm.statistics import RecollectHook, hooks

    seen = []
    monkeypatch.setattr(hooks.RecollectHook, '_recollect', lambda self, runner: seen.append(runner.iter))

    class Runner:
        max_iters = 7

    for iteration in range(7):
        runner = Runner()
        runner.iter = iteration
        RecollectHook(interval=3, by_epoch=False).after_train_iter(runner, iteration)
        RecollectHook(interval=3).after_train_iter(runner, iteration)
    assert seen == [2, 5, 6]
