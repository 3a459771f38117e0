"""Every family of tasks from data to metric: its real loader, training and test on two processes, its real metric.

On few, large digits in small images, quick to learn; configs/*_digits.py say what they are for and how long they take.
The test is on the images of the training, which a network knows in less than a minute, and, slow, on others.
"""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT

LEARNED = 0.03  # AP; that of an untrained network is 0
# Epochs, and of segmentors iterations, on few images that are those of the test as well, and on many others
LENGTHS = {
    'faster_rcnn_en_r50_digits': (24, 5),
    'mask_rcnn_xbn_r50_digits': (32, 5),
    'panoptic_fpn_rbn_r50_digits': (40, 5),
    'deeplabv3_sn_r50_digits': (40, 600),
    'pspnet_xbn_r50_digits': (40, 600),
}
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]

DETECTION = """
pipeline = [dict(step, scale=(64, 64)) if step['type'] == 'Resize' else step for step in _base_.pipeline]
train_dataloader = dict(dataset=dict(data_root=root, pipeline=pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(data_root=root, pipeline=pipeline))
train_cfg = dict(max_epochs=length, val_interval=length)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warm_up),
    dict(type='CosineAnnealingLR', begin=0, end=length, convert_to_iter_based=True)]
default_hooks = dict(checkpoint=dict(interval=length))
"""
BOXES = """
val_evaluator = test_evaluator = dict(ann_file=f'{root}/annotations/instances_val2017.json')
"""
PANOPTIC = """
panoptic, instances = _base_.val_evaluator
segments = f'{root}/annotations/panoptic_val2017'
val_evaluator = test_evaluator = [
    dict(panoptic, ann_file=f'{segments}.json', seg_prefix=segments),
    dict(instances, ann_file=f'{root}/annotations/instances_val2017.json')]
"""
SEGMENTATION = """
train_dataloader = dict(dataset=dict(data_root=root))
val_dataloader = test_dataloader = dict(dataset=dict(data_root=root))
train_cfg = dict(max_iters=length, val_interval=length)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warm_up),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=warm_up, end=length)]
default_hooks = dict(checkpoint=dict(interval=length))
"""


@pytest.fixture(scope='module', params=['known', pytest.param('others', marks=pytest.mark.slow)])
def images(request):
    """What the test is on: images of the training, or others."""
    return request.param


@pytest.fixture(scope='module')
def large_digits(images, tmp_path_factory):
    """Digits that fill half of their images."""
    from mmnorm.data import DigitsOptions, make_digits

    root = tmp_path_factory.mktemp('data') / 'digits'
    make_digits(
        root,
        DigitsOptions(
            num_train=16 if images == 'known' else 800,
            num_val=60,
            image_size=64,
            digits_per_image=(1, 2),
            digit_size=(32, 52),
        ),
    )
    if images == 'known':
        share_images(root)
    return root


def share_images(root):
    """Have every layout's val split be its train split."""
    for path in sorted(root.rglob('*train*')):
        val = path.with_name(re.sub('train(ing)?', lambda match: 'validation' if match[1] else 'val', path.name))
        if val.is_dir():
            shutil.rmtree(val)
        elif val.exists():
            val.unlink()
        else:
            continue
        val.symlink_to(path)


@pytest.fixture
def train_and_test(forked_tool, images, tmp_path):
    """Train and test a config of ours with changes, each on two processes; returns the test's metrics."""

    def run(name, root, *changes):
        length = LENGTHS[name][images != 'known']
        config = tmp_path / f'{name}.py'
        config.write_text(
            '\n'.join(
                [
                    f'_base_ = {str(ROOT / "configs" / name)!r} + ".py"',
                    f'root = {str(root)!r}',
                    f'length = {length}',
                    f'warm_up = {20 if images == "known" else 50}',
                    *changes,
                ]
            )
        )
        done = forked_tool('train.py', config, ranks=2, timeout=3000)
        assert done.returncode == 0, done.stdout[-3000:]
        work_dir = tmp_path / 'work_dirs' / name
        done = forked_tool('test.py', config, (work_dir / 'last_checkpoint').read_text(), ranks=2)
        assert done.returncode == 0, done.stdout[-3000:]
        return json.loads((work_dir / 'evaluation.json').read_text())['metrics']

    return run


def background_miou(root):
    """mIoU in percent of a network that predicts background everywhere."""
    maps = np.array([np.array(Image.open(path)) for path in sorted((root / 'ade/annotations/validation').iterdir())])
    return 100 / 11 * np.sum(maps == 1) / np.sum(maps > 0)


def test_detection(train_and_test, large_digits):
    metrics = train_and_test('faster_rcnn_en_r50_digits', large_digits / 'coco', DETECTION, BOXES)
    assert metrics['coco/bbox_mAP'] > LEARNED


def test_instance_segmentation(train_and_test, large_digits):
    metrics = train_and_test('mask_rcnn_xbn_r50_digits', large_digits / 'coco', DETECTION, BOXES)
    assert metrics['coco/bbox_mAP'] > LEARNED and metrics['coco/segm_mAP'] > LEARNED


def test_panoptic_segmentation(train_and_test, large_digits):
    metrics = train_and_test('panoptic_fpn_rbn_r50_digits', large_digits / 'coco', DETECTION, PANOPTIC)
    assert metrics['coco/bbox_mAP'] > LEARNED and metrics['coco/segm_mAP'] > LEARNED
    # One kind of stuff everywhere would have a PQ of 0 for the other, and of less than 100 for itself
    assert metrics['coco_panoptic/PQ_st'] > 50 and metrics['coco_panoptic/PQ_th'] > 1


@pytest.mark.parametrize('name, layout', [('deeplabv3_sn_r50_digits', 'cityscapes'), ('pspnet_xbn_r50_digits', 'ade')])
def test_semantic_segmentation(train_and_test, large_digits, name, layout):
    metrics = train_and_test(name, large_digits / layout, SEGMENTATION)
    assert metrics['mIoU'] > 1.5 * background_miou(large_digits)
