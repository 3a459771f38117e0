"""Checkpoints that must fit, and files that must not be lost."""

import os
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmnorm.engine import (
    CheckpointError,
    Evaluation,
    RequireWeightsHook,
    check_free,
    load_weights,
    read_checkpoint,
    save_network,
)
from mmnorm.engine.networks import build_network


def test_weights_must_fit(tmp_path, capsys):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    state = model.state_dict()
    load_weights(model, dict(state_dict={f'module.{key}': value for key, value in state.items()}), 'x.pth')
    lacking = {key: value for key, value in state.items() if not key.startswith('1.')}
    with pytest.raises(ValueError, match=r'x.pth does not fit the config: missing 4 of 7 keys; first: 1.weight'):
        load_weights(model, lacking, 'x.pth')
    with pytest.raises(ValueError, match='x.pth does not fit the config: size mismatch for 0.weight'):
        load_weights(model, dict(state, **{'0.weight': torch.zeros(2, 3, 1, 1)}), 'x.pth')
    load_weights(model, dict(state, more=torch.zeros(1)), 'x.pth')
    assert '1 keys not used; first: more' in capsys.readouterr().out


WEIGHTS = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).state_dict()


@pytest.mark.parametrize(
    'weights, message',
    [
        (dict(WEIGHTS, **{'0.weight': None}), 'missing 1 of 7 keys; first: 0.weight'),
        ({}, 'missing 6 of 7 keys; first: 0.weight'),
        ({f'backbone.{key}': value for key, value in WEIGHTS.items()}, 'missing 6 of 7 keys; .*; 7 keys not used'),
        (dict(WEIGHTS, **{'0.weight': torch.ones(2, 3, 1, 1)}), 'size mismatch for 0.weight'),
        (dict(WEIGHTS, **{'1.running_mean': None}), 'missing 1 of 7 keys; first: 1.running_mean'),
        (
            dict(WEIGHTS, **{'1.running_var': torch.full([4], torch.nan)}),
            'NaN, .* in 1 of its tensors; first: 1.running_v',
        ),
        (
            dict(WEIGHTS, **{'1.running_var': -torch.ones(4)}),
            'a negative variance in 1 of its tensors; first: 1.running_v',
        ),
        (dict(WEIGHTS, **{'0.bias': torch.full([4], torch.inf)}), 'NaN, infinity .*; first: 0.bias'),
        ('weights', 'it holds a str'),
    ],
)
def test_no_test_by_weights_that_lack_something(weights, message):
    """With mmengine alone each of these is tested and gives figures."""
    if isinstance(weights, dict):
        weights = {key: value for key, value in weights.items() if value is not None}
    runner = SimpleNamespace(model=nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    with pytest.raises(CheckpointError, match=f'x.pth .*{message}'):
        RequireWeightsHook('x.pth').after_load_checkpoint(runner, weights)


def test_a_test_of_what_is_there():
    said = []
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    runner = SimpleNamespace(model=model, logger=SimpleNamespace(warning=said.append))
    hook = RequireWeightsHook('x.pth', partial=True)
    hook.after_load_checkpoint(runner, {key: value for key, value in WEIGHTS.items() if key != '0.weight'})
    assert said == [
        'x.pth does not fit the config: missing 1 of 7 keys; first: 0.weight. They keep their initial values'
    ]
    assert torch.equal(runner.model.state_dict()['0.bias'], WEIGHTS['0.bias'])
    RequireWeightsHook('x.pth').after_load_checkpoint(SimpleNamespace(model=SimpleModule(runner.model)), WEIGHTS)


class SimpleModule(nn.Module):
    """What wraps a network, as DDP and test-time augmentation do."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / 'a.pth'
    path.write_bytes(b'half a checkpoint')
    with pytest.raises(ValueError, match='a.pth cannot be loaded as a checkpoint'):
        read_checkpoint(str(path))
    torch.save(print, path)  # a function: loading it would be running it
    with pytest.raises(ValueError, match='cannot be loaded as a checkpoint'):
        read_checkpoint(str(path))
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match='is not a checkpoint: it holds a list'):
        load_weights(nn.Linear(1, 1), read_checkpoint(str(path)), path)


def test_the_hook_that_evaluates_valid_regions_is_kept(digits_config, tmp_path):
    """It says how the network is evaluated, unlike the other hooks of the config, which are those of a training."""
    cfg = Config.fromfile(digits_config("custom_hooks = [dict(type='RecollectHook'), dict(type='ValidRegionHook')]"))
    cfg.work_dir = str(tmp_path)
    torch.save(build_network(cfg).state_dict(), tmp_path / 'a.pth')
    network = Evaluation(cfg, str(tmp_path / 'a.pth')).network
    assert network.normalizes_valid_regions


def test_network_and_config_are_written_together(tmp_path):
    weights = nn.Linear(2, 2).state_dict()
    written = save_network(
        weights,
        dict(meta=dict(epoch=3), optimizer={}),
        tmp_path / 'new/a.pth',
        dict(repair='x'),
        Config(dict(model=dict(type='Linear'))),
    )
    assert written == [tmp_path / 'new/a.pth', tmp_path / 'new/a.py']
    saved = torch.load(written[0], weights_only=True)
    assert saved.keys() == {'meta', 'state_dict'}
    assert saved['meta'] == dict(epoch=3, mmnorm=dict(repair='x'), cfg=written[1].read_text())
    assert Config.fromfile(written[1]).model.type == 'Linear'
    assert sorted(path.name for path in (tmp_path / 'new').iterdir()) == ['a.pth', 'a.py', 'checkpoints.sha256']


def test_killed_between_the_two_files_a_config_is_not_without_its_weights(tmp_path, monkeypatch):
    replace = os.replace

    def killed(partial, path):
        if path.suffix == '.py':
            raise KeyboardInterrupt
        replace(partial, path)

    monkeypatch.setattr(os, 'replace', killed)
    with pytest.raises(KeyboardInterrupt):
        save_network({}, {}, tmp_path / 'a.pth', {}, Config(dict(a=1)))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']
    with pytest.raises(FileExistsError, match='a.pth exists already'):  # so that no other config comes beside it
        save_network({}, {}, tmp_path / 'a.pth', {}, Config(dict(a=2)))
    assert read_checkpoint(tmp_path / 'a.pth')['meta']['cfg'] == 'a = 1\n'


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / 'a.py').write_text('mine')
    with pytest.raises(FileExistsError, match='a.py exists already and is not overwritten'):
        save_network({}, {}, tmp_path / 'a.pth', {}, Config())
    assert [path.name for path in tmp_path.iterdir()] == ['a.py'] and (tmp_path / 'a.py').read_text() == 'mine'
    assert check_free(tmp_path / 'a.pth') == [tmp_path / 'a.pth']
    with pytest.raises(ValueError, match='its name must end in .pth'):
        check_free(tmp_path / 'a')


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, 'save', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_network({}, {}, tmp_path / 'a.pth', {}, Config(dict(a=1)))
    assert not list(tmp_path.iterdir())
