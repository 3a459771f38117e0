"""Checkpoints whose norms are not those of the model: what a user of mmengine's Runner and functions is told."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner, load_checkpoint
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.utils.data import DataLoader

from mmnorm.engine.checkpoint import log_history_allowed
from mmnorm.norms import BRN, IBN, NORMS, SN, FrozenBN
from mmnorm.openmmlab.loading import ResumeError, describe_lost_norms

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')


class Model(BaseModel):
    def __init__(self, norm):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), norm(8)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.bn(self.conv(inputs)).square().sin().mean())


def group_norm(channels):
    return nn.GroupNorm(4, channels)


def build(work_dir, norm, epochs=1, **kwargs):
    return Runner(
        model=Model(norm),
        work_dir=str(work_dir),
        experiment_name=f'{work_dir.name}_{norm.__name__}_{epochs}',
        train_dataloader=DataLoader([dict(inputs=torch.randn(3, 6, 6)) for _ in range(4)], batch_size=2),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        **kwargs,
    )


@pytest.fixture(autouse=True)
def log_history_is_read():
    """As in our tools: mmengine 0.10.7, of the classic set, cannot resume its own files on torch 2.6 and newer."""
    with log_history_allowed():
        yield


@pytest.mark.parametrize(
    'before, after, said',
    [
        (nn.BatchNorm2d, SN, r'bn, SN in the model: only in the model: mean_weight, only in the model: var_weight'),
        (SN, nn.BatchNorm2d, r'bn, BatchNorm2d in the model: only in the checkpoint: mean_weight'),
        (IBN, nn.BatchNorm2d, r'only in the checkpoint: instance_channels'),
        (nn.BatchNorm2d, group_norm, r'only in the checkpoint: running_mean'),
        (nn.BatchNorm2d, NORMS['BGN'], r'of other shape: running_mean'),
        (nn.BatchNorm2d, FrozenBN, r'its optimizer has 4 parameters in 1 groups, that of this training 2 in 1'),
    ],
)
@pytest.mark.parametrize('hooks', [[], [dict(type='EMAHook')]], ids=['plain', 'ema'])
def test_resuming_with_another_norm_says_what_differs(tmp_path, before, after, said, hooks):
    build(tmp_path, before, custom_hooks=hooks).train()
    runner = build(tmp_path, after, 2, resume=True, custom_hooks=hooks)
    with pytest.raises(ResumeError, match=rf"epoch_1.pth cannot be resumed: .*{said}.*load_from='.*epoch_1.pth'"):
        runner.train()


def test_resuming_with_the_same_norm_or_one_of_the_same_tensors_goes_on(tmp_path):
    build(tmp_path, SN).train()
    runner = build(tmp_path, SN, 2, resume=True)
    runner.train()
    assert runner.iter == 4 and not any(type(hook).__name__ == '_CheckResumed' for hook in runner.hooks)
    build(tmp_path / 'bn', nn.BatchNorm2d).train()
    runner = build(tmp_path / 'bn', BRN, 2, resume=True)
    runner.train()
    assert runner.iter == 4


def test_files_of_before_the_marks_are_resumed(tmp_path):
    build(tmp_path, IBN).train()
    checkpoint = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    del checkpoint['state_dict']['bn.instance_channels']
    torch.save(checkpoint, tmp_path / 'epoch_1.pth')
    runner = build(tmp_path, IBN, 2, resume=True)
    runner.train()
    assert runner.iter == 4


@pytest.mark.parametrize('name', NORMS)
def test_norms_that_become_bn_are_named(name, tmp_path, capsys):
    model, source = nn.Sequential(nn.BatchNorm2d(8)), nn.Sequential(NORMS[name](8))
    own = set(source[0].state_dict()) - set(model[0].state_dict())
    for load in (load_state_dict, load_checkpoint):
        torch.save(source.state_dict(), tmp_path / 'file.pth')
        if load is load_state_dict:
            load(model, source.state_dict(), logger='silent')
        else:
            load(model, str(tmp_path / 'file.pth'), map_location='cpu')
    said = describe_lost_norms(model, source.state_dict())
    assert bool(said) == bool(own)
    if said:
        assert '1 norms of the checkpoint are' in said and 'BatchNorm2d in this model (0): the network computes' in said
        assert said in capsys.readouterr().out
    assert describe_lost_norms(source, source.state_dict()) == ''
