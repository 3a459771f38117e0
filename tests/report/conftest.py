"""A tiny COCO data set and runs on it, in exactly the layout that mmengine's Runner and mmnorm's tools leave."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from mmnorm.cli import run_command
from mmnorm.report import load_run, write_report

HEIGHT, WIDTH, NUM_IMAGES, EPOCH_LENGTH = 64, 96, 6, 25
CLASSES = ('cup', 'red & $x$', '<script>document.title="owned"</script>')
COLORS = ((250, 200, 20), (230, 30, 40), (255, 0, 255))
CONFIG = """
# <script>document.title = "owned by a comment"</script>
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3)
randomness = dict(seed=7)
train_dataloader = dict(batch_size=2)
test_dataloader = dict(
    dataset=dict(
        type='RepeatDataset',
        dataset=dict(
            type='CocoDataset', data_root={data_root!r}, ann_file='val.json', data_prefix=dict(img='images/'),
            metainfo=dict(classes={classes!r}))))
test_evaluator = dict(type='CocoMetric', metric=['bbox', 'segm'])
"""


def encode(x, y, width, height):
    """Return the run lengths of a filled rectangle."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order='F')
    mask[y : y + height, x : x + width] = 1
    return {'size': [HEIGHT, WIDTH], 'counts': mask_api.encode(mask)['counts'].decode()}


@pytest.fixture(scope='session')
def data_root(tmp_path_factory):
    """The folder of a data set: six images of colored rectangles, 'small' and 'medium' in COCO's terms."""
    root = tmp_path_factory.mktemp('data')
    (root / 'images').mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in range(1, NUM_IMAGES + 1):
        pixels = rng.integers(0, 90, (HEIGHT, WIDTH, 3), np.uint8)
        for slot in range(3):
            x, y = 32 * slot + int(rng.integers(0, 5)), int(rng.integers(0, 20))
            width, height = int(rng.integers(12, 27)), int(rng.integers(12, 44))
            category = int(rng.integers(0, 3))
            pixels[y : y + height, x : x + width] = COLORS[category]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=category + 1,
                    iscrowd=0,
                    bbox=[x, y, width, height],
                    area=width * height,
                    segmentation=encode(x, y, width, height),
                )
            )
        Image.fromarray(pixels).save(root / f'images/{image_id}.png')
        images.append(dict(id=image_id, file_name=f'{image_id}.png', width=WIDTH, height=HEIGHT))
    categories = [dict(id=index, name=name) for index, name in enumerate(CLASSES, 1)]
    (root / 'val.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return root


def make_predictions(data_root, seed):
    """Return predictions (bbox, segm): the objects a few pixels aside, with some missed and some made up."""
    rng = np.random.default_rng(seed)
    bbox, segm = [], []
    for annotation in json.loads((data_root / 'val.json').read_text())['annotations']:
        if rng.random() < 0.2:
            continue
        x, y, width, height = annotation['bbox']
        category = annotation['category_id'] if rng.random() < 0.85 else 1
        x, y = x + int(rng.integers(0, 4)), y + int(rng.integers(0, 4))
        common = dict(
            image_id=annotation['image_id'],
            category_id=category,
            score=float(rng.uniform(0.3, 1)),
            bbox=[x, y, width, height],
        )
        bbox.append(common)
        segm.append(dict(common, segmentation=encode(x, y, width - 1, height - 1)))
    return bbox, segm


def train_line(iteration, epoch_length=EPOCH_LENGTH, **values):
    """Return a line of training as mmengine logs it, of an epoch-based loop if ``epoch_length`` is a number."""
    line = dict(
        lr=0.01,
        data_time=0.01,
        loss=3 / iteration + 1,
        loss_cls=2 / iteration,
        loss_bbox=1 / iteration + 1,
        time=0.3,
        iter=iteration,
        step=iteration,
    )
    if epoch_length:
        line['epoch'] = (iteration - 1) // epoch_length + 1
    return {**line, **values}


def coco_line(step, ap):
    """Return a line of validation as mmdet's CocoMetric makes it, without large objects."""
    return {
        f'coco/{iou_type}_mAP{suffix}': value
        for iou_type in ('bbox', 'segm')
        for suffix, value in (('', ap), ('_50', ap + 0.2), ('_75', ap), ('_s', ap), ('_m', ap), ('_l', -1.0))
    } | dict(data_time=0.01, time=0.05, step=step)


def write_session(work_dir, timestamp, lines):
    """Write the logs of one start of a run."""
    folder = work_dir / timestamp / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def write_run(work_dir, data_root, seed=1):
    """Write a work dir with everything in it and return its path."""
    lines = []
    for epoch in (1, 2, 3):
        lines += [train_line(EPOCH_LENGTH * (epoch - 1) + inner) for inner in (10, 20)]
        lines += [coco_line(epoch, 0.1 * epoch)]
    write_session(work_dir, '20250101_120000', lines)
    (work_dir / 'mask_rcnn.py').write_text(CONFIG.format(data_root=str(data_root), classes=CLASSES))
    for iou_type, predictions in zip(('bbox', 'segm'), make_predictions(data_root, seed)):
        (work_dir / f'predictions.{iou_type}.json').write_text(json.dumps(predictions))
    (work_dir / 'run.json').write_text(
        json.dumps(
            dict(
                config='configs/mask_rcnn.py',
                cwd=str(work_dir.parent),
                commit='0123abc',
                dirty=True,
                seed=0,
                world_size=2,
                batch_size=8,
                device='2 processes, CPU',
                versions=dict(torch='2.13.0'),
                started='2025-01-01T12:00:00',
                finished='2025-01-01T12:02:00',
                train_seconds=90.0,
                iterations=75,
                num_parameters=1234567,
                norms=dict(GroupNorm=17),
                peak_memory_mb=1500.4,
                peak_memory_kind='rss',
            )
        )
    )
    return work_dir


@pytest.fixture
def make_run(tmp_path, data_root):
    """A function that writes a work dir with everything in it and returns its path."""
    return lambda name='run', seed=1: write_run(tmp_path / name, data_root, seed)


@pytest.fixture(scope='session')
def two_runs(tmp_path_factory, data_root):
    """The page of a report of two runs, one of which has a name for HTML to stumble over."""
    root = tmp_path_factory.mktemp('two_runs')
    runs = [load_run(write_run(root / 'first', data_root)), load_run(write_run(root / 'b<b>&"', data_root, seed=2))]
    return write_report(runs, root / 'out')


@pytest.fixture(scope='session')
def report_main():
    """``mmnorm report``, called with its arguments."""
    return lambda argv: run_command('report', argv)
