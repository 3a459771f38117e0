from unittest import mock

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import DataLoader

from mmnorm.engine import CheckpointError, Runner, forbid_running_checkpoints, read_checkpoint
from mmnorm.engine.runner import newest_checkpoint


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.layer(inputs).square().mean())


@pytest.fixture(autouse=True)
def forbidden(monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')  # restored afterwards
    forbid_running_checkpoints()


def build(work_dir, epochs, **kwargs):
    return Runner(
        model=Model(),
        work_dir=str(work_dir),
        experiment_name=f'{work_dir.name}_{epochs}',
        train_dataloader=DataLoader([dict(inputs=torch.ones(2)) for _ in range(4)]),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        **kwargs,
    )


def test_resumes_own_checkpoints_with_weights_only(tmp_path):
    build(tmp_path, 2).train()
    assert not list(tmp_path.glob('*.partial'))
    runner = build(tmp_path, 3, resume=True)
    runner.train()
    assert runner.iter == 12
    checkpoint = read_checkpoint(tmp_path / 'epoch_3.pth')
    assert checkpoint['meta']['iter'] == 12
    # the log history of the first two epochs came along
    assert len(checkpoint['message_hub']['log_scalars']['train/loss'].data[0]) == 12


def test_passes_over_what_does_not_load_and_says_so(tmp_path):
    build(tmp_path, 2).train()
    whole = (tmp_path / 'epoch_2.pth').read_bytes()
    (tmp_path / 'epoch_10.pth').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'epoch_9.pth').write_bytes(b'')
    torch.save(dict(state_dict={}), tmp_path / 'epoch_8.pth')
    for left in ('epoch_11.pth.partial', f'epoch_11.pth.{"0" * 16}.partial'):  # by kills; not even mentioned
        (tmp_path / left).write_bytes(whole[:100])
    said = []
    assert newest_checkpoint(tmp_path, said.append) == str(tmp_path / 'epoch_2.pth')
    assert [line.split(':')[0] for line in said] == [f'skipping {tmp_path}/epoch_{n}.pth' for n in (10, 9, 8)]
    assert 'it has no meta and no optimizer' in said[2]


def test_without_a_checkpoint_training_starts_from_the_beginning(tmp_path):
    runner = build(tmp_path, 1, resume=True)
    runner.train()
    assert runner.iter == 4


def test_an_interrupted_write_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    runner = build(tmp_path, 1)
    runner.train()
    before = (tmp_path / 'epoch_1.pth').read_bytes()

    def torn(obj, file, *args, **kwargs):
        if hasattr(file, 'write'):
            file.write(b'half')
        else:
            (tmp_path / file).write_bytes(b'half')  # an absolute path
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, 'save', torn)
    with pytest.raises(KeyboardInterrupt):
        runner.save_checkpoint(str(tmp_path), 'epoch_1.pth')
    assert (tmp_path / 'epoch_1.pth').read_bytes() == before


def test_killed_before_the_sum_is_noted_the_list_has_none_of_another_file(tmp_path, monkeypatch):
    runner, sums = build(tmp_path, 2), tmp_path / 'checkpoints.sha256'
    runner.train()
    assert sums.read_text().split()[1::2] == ['epoch_1.pth', 'epoch_2.pth']
    monkeypatch.setattr('mmnorm.engine.runner.write_sum', mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        runner.save_checkpoint(str(tmp_path), 'epoch_1.pth', meta=dict(other=1))
    assert sums.read_text().split()[1::2] == ['epoch_2.pth']


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return exec, (f'open({str(self.marker)!r}, "w")',)


def test_a_checkpoint_that_wants_to_run_code_is_refused(tmp_path):
    path, marker = tmp_path / 'epoch_1.pth', tmp_path / 'ran'
    torch.save(dict(state_dict=Malicious(marker), meta={}, optimizer={}), path)
    with pytest.raises(ValueError, match='refused, because it would run .*exec'):
        read_checkpoint(path)
    runner = build(tmp_path, 1)
    with pytest.raises(CheckpointError, match='^[^\n]*epoch_1.pth .*refused, because it would run .*exec[^\n]*$'):
        runner.load_checkpoint(str(path))
    assert newest_checkpoint(tmp_path, lambda line: None) is None
    assert not marker.exists()


class Reaching:
    def __reduce__(self):
        return getattr, (MessageHub, 'get_instance')


def test_getattr_is_allowed_for_log_histories_only(tmp_path):
    torch.save(dict(state_dict=Reaching()), tmp_path / 'reaching.pth')
    with pytest.raises(ValueError, match='cannot be loaded as a checkpoint'):
        read_checkpoint(tmp_path / 'reaching.pth')
