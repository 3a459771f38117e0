"""A training that has diverged ends, and says where that began."""

import math

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import DataLoader

from mmnorm.engine import Runner
from mmnorm.engine.runner import newest_checkpoint
from mmnorm.openmmlab.hooks import NonFiniteLossError, StopOnNaNHook


class Model(BaseModel):
    """Two norms; from iteration ``since`` to ``until`` on, what comes after the place ``breaks`` is infinite."""

    def __init__(self, norm, breaks, since=5, until=math.inf):
        super().__init__()
        self.first, self.second = norm(4), norm(4)
        self.conv, self.breaks, self.when, self.iteration = nn.Conv2d(3, 4, 1), breaks, (since, until), 0

    def forward(self, inputs, mode='tensor'):
        def maybe(x, place):
            since, until = self.when
            return x * math.inf if place == self.breaks and since <= self.iteration <= until else x

        self.iteration += 1
        x = maybe(self.conv(inputs), 'conv')
        x = maybe(self.first(x), 'first')
        return dict(loss=maybe(self.second(x).sin().mean(), 'second'))

    def train_step(self, data, optim_wrapper):
        loss = self(**data)['loss']
        if loss.isfinite() or self.when[1] == math.inf:  # else as mixed precision leaves a step out
            optim_wrapper.update_params(loss)
        return dict(loss=loss.detach())


def group_norm(channels):
    return nn.GroupNorm(2, channels)


def build(work_dir, model, patience=3, **kwargs):
    return Runner(
        model=model,
        work_dir=str(work_dir),
        experiment_name=str(work_dir),
        train_dataloader=DataLoader([dict(inputs=torch.randn(3, 2, 2)) for _ in range(4)]),
        train_cfg=dict(by_epoch=True, max_epochs=5),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type='StopOnNaNHook', patience=patience)],
        log_level='ERROR',
        **kwargs,
    )


@pytest.mark.parametrize(
    'norm, breaks, where',
    [
        (
            nn.BatchNorm2d,
            'conv',
            r'first \(BatchNorm2d\) is the first norm.* statistics were not finite then \(running_',
        ),
        (nn.BatchNorm2d, 'first', r'second \(BatchNorm2d\) is the first norm.* \(running_mean: 4 of 4\)'),
        (nn.BatchNorm2d, 'second', r'statistics of all norms were finite then. In the next .*, first \(BatchNorm2d\)'),
        (group_norm, 'first', r'In the next iteration, when weights may have .*, first \(GroupNorm\) was the first'),
    ],
)
def test_a_training_ends_and_names_the_first_norm(tmp_path, norm, breaks, where):
    with pytest.raises(NonFiniteLossError, match=rf'not been finite since iteration 5, for 5 iterations.*{where}'):
        build(tmp_path, Model(norm, breaks)).train()


def test_what_recovers_goes_on(tmp_path):
    model = Model(nn.BatchNorm2d, 'second', until=6)
    runner = build(tmp_path, model)
    runner.train()
    assert runner.iter == 20 and not model.first._forward_pre_hooks


def test_where_weights_stay_finite_the_layer_is_found_that_sees_it_first(tmp_path):
    model = Model(group_norm, 'first', until=100)
    with pytest.raises(NonFiniteLossError, match=r'second \(GroupNorm\) was the first norm whose input was not'):
        build(tmp_path, model).train()


def test_a_checkpoint_of_nan_is_not_what_a_training_is_resumed_from(tmp_path):
    with pytest.raises(NonFiniteLossError):
        build(tmp_path, Model(nn.BatchNorm2d, 'second', since=6), patience=10).train()
    said = []
    assert newest_checkpoint(tmp_path, said.append) == str(tmp_path / 'epoch_1.pth')
    assert said == [f'skipping {tmp_path}/epoch_{n}.pth: its weights have become NaN' for n in (4, 3, 2)]


def test_losses_are_what_is_looked_at():
    hook = StopOnNaNHook(1)
    hook.before_train(None)
    runner = type('Runner', (), dict(iter=0, model=nn.Identity()))()
    hook.after_train_iter(runner, 0, outputs=dict(accuracy=math.nan, loss=torch.tensor(1.0)))
    hook.after_train_iter(runner, 0, outputs=None)
