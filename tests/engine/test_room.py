"""Checkpoints that will find no room are told of before training starts, and a full disk costs no earlier one."""

import errno
import os

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import DataLoader

from mmnorm import files
from mmnorm.engine import CheckRoomHook, Runner, check_room, room
from mmnorm.files import WriteError

CONFIG = 50_000  # bytes of config and log history, at most


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(300, 300)
        self.frozen = nn.Linear(300, 100).requires_grad_(False)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.layer(inputs).square().mean())


def build(work_dir, epochs=1, optimizer=None, checkpoint=None, **kwargs):
    runner = Runner(
        model=Model(),
        work_dir=str(work_dir),
        experiment_name=work_dir.name,
        train_dataloader=DataLoader([dict(inputs=torch.ones(300))]),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=optimizer or dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=dict(dict(type='CheckpointHook', interval=1), **(checkpoint or {}))),
        **kwargs,
    )
    runner.register_hook(CheckRoomHook())
    return runner


@pytest.mark.parametrize(
    'optimizer, checkpoint, hooks',
    [
        (dict(type='SGD', lr=0.1), {}, []),
        (dict(type='SGD', lr=0.1, momentum=0.9), {}, []),
        (dict(type='AdamW', lr=0.1), {}, []),
        (dict(type='AdamW', lr=0.1), dict(save_optimizer=False), []),
        (dict(type='SGD', lr=0.1), {}, [dict(type='EMAHook')]),
    ],
)
def test_the_size_of_a_checkpoint_is_known_before_the_first(tmp_path, monkeypatch, optimizer, checkpoint, hooks):
    asked = []
    monkeypatch.setattr(room, '_check', lambda folder, size: asked.append(size))
    build(tmp_path, optimizer=optimizer, checkpoint=checkpoint, custom_hooks=hooks).train()
    cfg = Config(
        dict(
            work_dir=str(tmp_path),
            optim_wrapper=dict(optimizer=optimizer),
            custom_hooks=hooks,
            default_hooks=dict(checkpoint=checkpoint),
        )
    )
    check_room(cfg, Model())
    actual = (tmp_path / 'epoch_1.pth').stat().st_size
    assert asked[0] == asked[1] and 0 <= actual - asked[0] < CONFIG


def test_an_optimizer_that_cannot_be_tried_is_taken_for_adam():
    model = nn.Linear(10, 10)
    assert room.checkpoint_size(model, [torch.optim.LBFGS(model.parameters())]) == 3 * room.checkpoint_size(model)


def test_the_size_is_known_to_one_rank_alone(monkeypatch):
    """The state dict of a sharded model is one that all ranks make together."""
    monkeypatch.setattr(nn.Module, 'state_dict', lambda *args: pytest.fail('the other ranks are not here'))
    assert room.checkpoint_size(nn.BatchNorm2d(10)) == 4 * 40 + 8


def test_an_optimizer_that_a_check_cannot_build_is_taken_for_adam(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(room, '_check', lambda folder, size: asked.append(size))
    check_room(
        Config(dict(work_dir=str(tmp_path), optim_wrapper=dict(optimizer=dict(type='Unknown')))), nn.Linear(2, 2)
    )
    assert asked == [3 * 4 * 6]


def test_training_does_not_start_without_room_for_a_checkpoint(tmp_path, monkeypatch):
    runner = build(tmp_path)
    monkeypatch.setattr(room, 'free_space', lambda folder: 400_000)
    told = rf'{tmp_path} has no room for a checkpoint: it takes about 481.6 kB, and 400.0 kB are free. Make room'
    with pytest.raises(WriteError, match=told):
        runner.train()
    assert not list(tmp_path.glob('*.pth')) and runner.iter == 0


@pytest.mark.parametrize('keep, number', [(-1, 4), (3, 3), (2, None)])
def test_room_for_the_first_checkpoints_only(tmp_path, monkeypatch, keep, number):
    runner, said = build(tmp_path, 4, checkpoint=dict(max_keep_ckpts=keep)), []
    size = room.checkpoint_size(runner.model)
    monkeypatch.setattr(runner.logger, 'warning', said.append)
    monkeypatch.setattr(room, 'free_space', lambda folder: 2 * size)
    runner.train()
    told = [line for line in said if 'max_keep_ckpts' in line]
    assert [line.split()[1] for line in told] == ([str(number)] if number else [])


def test_a_disk_that_gets_full_leaves_the_checkpoints_before(tmp_path, monkeypatch):
    runner = build(tmp_path, 3)
    replace = os.replace

    def fill(partial, path):
        if path.name == 'epoch_2.pth':
            raise OSError(errno.ENOSPC, 'No space left on device')
        replace(partial, path)

    monkeypatch.setattr(os, 'replace', fill)
    monkeypatch.setattr(files, 'free_space', lambda folder: 1000)
    told = r'epoch_2.pth could not be written: the disk is full \(481.6 kB are needed, 1.0 kB are free\)'
    with pytest.raises(WriteError, match=told):
        runner.train()
    assert [path.name for path in tmp_path.glob('*.pth*')] == ['epoch_1.pth']
