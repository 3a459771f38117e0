"""What the tools say when something is missing: one message, before anything starts, and no traceback."""

import re

import pytest
import torch

from tests.conftest import ROOT

TABLE_4 = ROOT / 'configs/mask_rcnn_xbn_r50.py'


@pytest.fixture
def start(tool, forked_tool):
    """Run a tool in the quickest way for what it is written in."""
    return lambda name, *args: (forked_tool if name.endswith('.py') else tool)(name, *args)


@pytest.mark.parametrize(
    'name',
    [
        'train.py',
        'test.py',
        'dist_train.sh',
        'dist_test.sh',
        'slurm_train.sh',
        'slurm_test.sh',
        'make_digits.py',
        'report.py',
        'setup_env.py',
        'convert_checkpoint.py',
        'zoo.py',
    ],
)
def test_help(start, name):
    done = start(name, '--help')
    assert done.returncode == 0 and 'usage:' in done.stdout


def test_the_owners_command_names_what_is_missing_and_stops(tool):
    done = tool('dist_train.sh', TABLE_4, 8)
    assert done.returncode != 0 and 'Traceback' not in done.stdout
    for part in (
        '8',
        'data/coco/annotations/instances_train2017.json',
        'makes the embedded data set',
        'pretrained/resnet50_xbn.pth',
        'mask_rcnn_xbn_r50_bn_init.py',
        'mask_rcnn_xbn_r50_scratch.py',
    ):
        assert part in done.stdout
    assert done.stdout.count('error:') == 1


@pytest.mark.parametrize(
    'name, args, message',
    [
        ('dist_train.sh', ['config.py'], 'usage: dist_train.sh CONFIG NUM_PROCESSES'),
        ('dist_train.sh', ['config.py', 'two'], 'usage: dist_train.sh CONFIG NUM_PROCESSES'),
        ('dist_test.sh', ['config.py', '2'], 'usage: dist_test.sh CONFIG CHECKPOINT NUM_PROCESSES'),
        ('dist_train.sh', ['nowhere.py', '2'], 'error: config nowhere.py does not exist'),
        ('slurm_train.sh', ['part', 'job', 'config.py'], 'error: srun is not on'),
    ],
)
def test_wrong_arguments(start, name, args, message):
    done = start(name, *args)
    assert done.returncode != 0 and message in done.stdout and 'Traceback' not in done.stdout


def test_resuming_with_other_norms(forked_tool, digits_config, tmp_path):
    checkpoint = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict={'backbone.bn1.mean_weight': torch.ones(3)}, optimizer={}, meta={}), checkpoint)
    done = forked_tool('train.py', digits_config(), '--resume', str(checkpoint))
    assert done.returncode != 0 and 'Traceback' not in done.stdout
    assert f'error: {checkpoint} cannot be resumed:' in done.stdout and 'load_from=' in done.stdout


class Malicious:
    def __reduce__(self):
        return open, ('ran', 'w')


@pytest.mark.parametrize(('name', 'option'), [('test.py', None), ('train.py', 'load_from')])
def test_a_checkpoint_that_would_run_something(forked_tool, digits_config, tmp_path, name, option):
    torch.save(dict(state_dict=Malicious()), tmp_path / 'k.pth')
    done = forked_tool(name, digits_config(), *(['--cfg-options', f'{option}=k.pth'] if option else ['k.pth']))
    said = r'error: k\.pth cannot be loaded as a checkpoint: refused, because it would run _?io\.open;'  # by Python
    assert done.returncode != 0 and re.search(said, done.stdout), done.stdout
    assert 'weights_only' not in done.stdout and 'Traceback' not in done.stdout and not (tmp_path / 'ran').exists()


def test_a_checkpoint_that_lacks_weights(forked_tool, digits_config, tmp_path):
    torch.save(dict(state_dict={'backbone.conv1.weight': torch.ones(16, 3, 7, 7)}), tmp_path / 'k.pth')
    done = forked_tool('test.py', digits_config(), 'k.pth')
    assert done.returncode == 2 and 'error: k.pth does not fit the config: missing' in done.stdout, done.stdout
    assert 'without them: --partial' in done.stdout and 'Traceback' not in done.stdout


@pytest.mark.e2e
def test_a_training_that_diverges(forked_tool, digits_config):
    diverging = (
        'optim_wrapper = dict(optimizer=dict(lr=1e12))\nparam_scheduler = []\ntrain_dataloader.update(batch_size=1)'
    )
    done = forked_tool('train.py', digits_config(diverging), '--stop-on-nan', 2)
    assert done.returncode == 2
    (error,) = [line for line in done.stdout.splitlines() if line.startswith('error')]
    assert (
        'the loss has not been finite since iteration' in error and ' is the first norm, in the order of the' in error
    )
    assert error.endswith('--stop-on-nan 0 goes on. No checkpoint is from before')
