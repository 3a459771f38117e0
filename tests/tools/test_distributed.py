"""Training on several processes is DDP, and equals training on one."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from mmnorm.files import checksum
from tests.conftest import ROOT

HOOK = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
custom_imports = dict(imports=['mmnorm', 'rank_weights'], allow_failed_imports=False)
custom_hooks = [dict(type='SaveRankWeights')]
"""

# FCOS averages its losses over the positives of all ranks; Mask R-CNN's are normalized by each rank's own, and its
# samplers draw at random, so that one and two processes differ by design there.
ONE_STEP = (
    HOOK
    + """
model = dict(
    _delete_=True, type='FCOS',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[128] * 3, std=[64] * 3, pad_size_divisor=32),
    backbone=dict(type='XBNResNet', depth=18, base_channels=8, norm_cfg=dict(type='FrozenBN')),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=5),
    bbox_head=dict(type='FCOSHead', num_classes=10, in_channels=16, feat_channels=16,
                   norm_cfg=dict(type='GN', num_groups=4), strides=[4, 8, 16, 32, 64]),
    test_cfg=dict(nms_pre=100, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10))
train_dataloader = dict(batch_size={batch_size}, sampler=dict(shuffle=False), dataset=dict(indices=4, **data))
train_cfg = dict(max_epochs=1, val_interval=10)
optim_wrapper = dict(_delete_=True, optimizer=dict(type='SGD', lr=0.1))
param_scheduler = []
auto_scale_lr = dict(enable=False)
"""
)


def weights(work_dir, rank):
    saved = torch.load(work_dir / f'rank{rank}.pth', weights_only=True)
    consume_prefix_in_state_dict_if_present(saved['weights'], 'module.')
    return saved


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_two_processes_equal_one_on_the_same_global_batch(forked_tool, digits_config, tmp_path):
    runs = {}
    for processes in (1, 2):
        config = digits_config(ONE_STEP.replace('{batch_size}', str(4 // processes)), name=f'step{processes}.py')
        done = forked_tool('train.py', config, ranks=processes)
        assert done.returncode == 0, done.stdout
        runs[processes] = [weights(tmp_path / f'work_dirs/step{processes}', rank) for rank in range(processes)]
    one, (first, second) = runs[1][0], runs[2]
    assert sorted(one['images']) == sorted(first['images'] + second['images']) and len(one['images']) == 4
    initial = torch.load(tmp_path / 'work_dirs/step1/epoch_1.pth', weights_only=False)['state_dict']
    moved = 0
    for key, value in one['weights'].items():
        assert torch.equal(initial[key], value)  # the checkpoint is what the rank ended with
        torch.testing.assert_close(first['weights'][key], value, rtol=1e-4, atol=1e-5, msg=key)
        moved += 'weight' in key
    assert moved > 30


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_ranks_see_different_images_and_end_with_equal_weights(tool, digits_config, tmp_path):
    config = digits_config(
        HOOK + 'train_cfg = dict(max_epochs=1)\nauto_scale_lr = dict(base_batch_size=4)\n'
        "custom_hooks = [dict(type='SyncBuffersHook'), *custom_hooks]"
    )
    done = tool('dist_train.sh', config, 2)
    assert done.returncode == 0, done.stdout
    assert 'no GPU found: 2 process(es) on the CPU' in done.stdout or torch.cuda.is_available()
    work_dir = tmp_path / 'work_dirs/project'
    first, second = weights(work_dir, 0), weights(work_dir, 1)
    assert not set(first['images']) & set(second['images'])
    for key, value in first['weights'].items():
        if 'running' not in key and 'num_batches' not in key:
            assert torch.equal(value, second['weights'][key]), key
    record = json.loads((work_dir / 'run.json').read_text())
    assert record['world_size'] == 2 and record['batch_size'] == 4 and record['seed'] == 0
    assert record['iterations'] == 4 and record['finished'] and record['peak_memory_mb'] > 100
    assert record['norms'] == dict(BatchNorm2d=37, GroupNorm=16)

    done = tool('dist_test.sh', config, work_dir / 'epoch_1.pth', 2)
    assert done.returncode == 0, done.stdout
    evaluation = json.loads((work_dir / 'evaluation.json').read_text())
    assert 0 <= evaluation['metrics']['coco/bbox_mAP'] <= 1
    for kind in ('bbox', 'segm'):
        path = work_dir / f'predictions.{kind}.json'
        assert isinstance(json.loads(path.read_text()), list)
        assert evaluation['predictions'][path.name] == checksum(path)
    assert not list(work_dir.glob('.*')) and not (work_dir / 'training.lock').exists()


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_checkpoints_by_iteration_have_the_statistics_of_all_ranks(forked_tool, digits_config, tmp_path):
    """mmengine saves before it validates, and only then would its own hook average the statistics."""
    config = digits_config(
        HOOK
        + """
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=3, val_interval=10)
param_scheduler = []
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=2))
""",
        base='faster_rcnn_en_r50_digits',
    )
    done = forked_tool('train.py', config, ranks=2)
    assert done.returncode == 0, done.stdout
    work_dir = tmp_path / 'work_dirs/project'
    first, second = (weights(work_dir, rank)['weights'] for rank in (0, 1))
    at_two, at_end = (
        torch.load(work_dir / f'iter_{iteration}.pth', weights_only=False)['state_dict'] for iteration in (2, 3)
    )
    means = [key for key in first if key.endswith('running_mean')]
    assert len(means) == 61 and not any(torch.equal(at_two[key], at_end[key]) for key in means)
    for key in means:
        torch.testing.assert_close(at_end[key], first[key])
        torch.testing.assert_close(at_end[key], second[key])


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_an_mmseg_config_trains_is_evaluated_and_reported(forked_tool, digits, tmp_path):
    config = tmp_path / 'segmentation.py'
    config.write_text(f"""
_base_ = {str(ROOT / 'configs/pspnet_xbn_r50_digits.py')!r}
data = dict(data_root={str(digits / 'ade')!r})
train_dataloader = dict(batch_size=2, dataset=data)
val_dataloader = test_dataloader = dict(dataset=data)
train_cfg = dict(max_iters=4, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=4), logger=dict(interval=1))
""")
    work_dir = tmp_path / 'work_dirs/segmentation'
    done = forked_tool('train.py', config, ranks=2)
    assert done.returncode == 0, done.stdout[-3000:]
    done = forked_tool('test.py', config, work_dir / 'iter_4.pth', ranks=2)
    assert done.returncode == 0, done.stdout[-3000:]
    assert 0 <= json.loads((work_dir / 'evaluation.json').read_text())['metrics']['mIoU'] <= 100
    done = forked_tool('report.py', work_dir)
    assert done.returncode == 0, done.stdout
    assert 'mIoU' in (work_dir / 'report.md').read_text()

    done = forked_tool('test.py', config, work_dir / 'iter_4.pth', '--tta', ranks=2)
    assert done.returncode == 0, done.stdout[-3000:]
    assert 0 <= json.loads((work_dir / 'evaluation_tta.json').read_text())['metrics']['mIoU'] <= 100
    assert forked_tool('report.py', work_dir).returncode == 0
    report = (work_dir / 'report.md').read_text()
    assert ' mIoU (ms) |' in report and ' mIoU |' in report
