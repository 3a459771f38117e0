"""Metrics of resampled images are what the hosts' evaluators give for them, and gains have the errors they should."""

import contextlib
import io
from unittest import mock

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric, CocoPanopticMetric
from mmseg.evaluation import IoUMetric
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmnorm.openmmlab.panoptic import PQStat
from mmnorm.openmmlab.resampling import AveragePrecision, MeanOfRatios, choices, gain_error, recorded, resample

CATEGORIES = [dict(id=1, name='a'), dict(id=2, name='b'), dict(id=3, name='never')]


def boxes_of(rng, images=12, detections=6, noise=4.0):
    """Objects of images and detections of them, some off, some of nothing, some of crowds."""
    objects, found = [], []
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 4)):
            box = [*rng.uniform(0, 50, 2), *rng.uniform(10, 40, 2)]
            crowd, category = int(rng.random() < 0.1), int(rng.integers(1, 3))
            objects.append(dict(image_id=image, category_id=category, bbox=box, iscrowd=crowd))
            objects[-1].update(id=len(objects), area=box[2] * box[3])
            for _ in range(rng.integers(0, 3)):
                near = np.array(box) + rng.normal(0, noise, 4)
                guess = category if rng.random() < 0.9 else 1
                found.append((image, guess, near.clip(0.1).tolist(), float(rng.random())))
        for _ in range(rng.integers(0, detections)):
            found.append((image, int(rng.integers(1, 3)), rng.uniform(1, 40, 4).tolist(), float(rng.random())))
    keys = ('image_id', 'category_id', 'bbox', 'score')
    return objects, [dict(zip(keys, of)) for of in found]


def evaluate(objects, found, images):
    """pycocotools' evaluation of images (list of ids), which may occur more than once."""
    number = {}
    for new, image in enumerate(images, 1):
        number.setdefault(image, []).append(new)
    data = dict(images=[dict(id=i) for i in range(1, len(images) + 1)], categories=CATEGORIES)
    data['annotations'] = [dict(one, image_id=new) for one in objects for new in number.get(one['image_id'], ())]
    for i, one in enumerate(data['annotations'], 1):
        one['id'] = i
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = data
        truth.createIndex()
        results = [dict(one, image_id=new) for one in found for new in number.get(one['image_id'], ())]
        coco_eval = COCOeval(truth, truth.loadRes(results), 'bbox')
        coco_eval.params.maxDets = [100, 300, 1000]
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    return coco_eval


@pytest.mark.parametrize('seed', range(4))
def test_average_precision_of_resampled_images_is_pycocotools(seed, monkeypatch):
    if seed == 3:
        monkeypatch.setattr('mmnorm.openmmlab.resampling._CHUNK', 50)  # images of which go by chunks
    objects, found = boxes_of(np.random.default_rng(seed))
    ours = AveragePrecision(evaluate(objects, found, range(1, 13)))
    counts = np.concatenate([np.ones((1, 12), int), choices(12, 5, seed)])
    values = ours.resampled(counts)
    assert len(set(values.round(6))) > 3
    for value, times in zip(values, counts):
        # equal scores of an image that is taken twice follow each other in the order of images, as ours do
        theirs = evaluate(objects, found, np.repeat(np.arange(1, 13), times)).stats[0]
        assert value == pytest.approx(100 * theirs, abs=1e-6)


def test_no_object_among_the_images_is_nan():
    objects, found = boxes_of(np.random.default_rng(0))
    empty = [image for image in range(1, 13) if image not in {one['image_id'] for one in objects}]
    assert empty
    counts = np.zeros((2, 12), int)
    counts[0, empty[0] - 1], counts[1] = 12, 1
    assert np.isnan(AveragePrecision(evaluate(objects, found, range(1, 13))).resampled(counts)).tolist() == [
        True,
        False,
    ]


def test_cocos_metric_is_recorded_with_its_own_figure(tmp_path):
    objects, found = boxes_of(np.random.default_rng(1), images=8)
    metric = CocoMetric(metric='bbox')
    metric.dataset_meta = dict(classes=('a', 'b', 'never'))
    for image in range(1, 9):
        truth = [
            dict(bbox=[x, y, x + w, y + h], bbox_label=one['category_id'] - 1, ignore_flag=one['iscrowd'])
            for one in objects
            if one['image_id'] == image
            for x, y, w, h in [one['bbox']]
        ]
        of = [one for one in found if one['image_id'] == image]
        boxes = torch.tensor([one['bbox'] for one in of]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        prediction = dict(
            bboxes=boxes,
            scores=torch.tensor([one['score'] for one in of]),
            labels=torch.tensor([one['category_id'] - 1 for one in of], dtype=torch.int64),
        )
        metric.process({}, [dict(img_id=image, ori_shape=(100, 100), pred_instances=prediction, instances=truth)])
    compute, host = metric.compute_metrics, type(metric).compute_metrics.__globals__['COCOeval']
    with contextlib.redirect_stdout(io.StringIO()), recorded([metric]) as kept:
        values = metric.evaluate(8)
    assert kept.keys() == {'coco/bbox_mAP'} and 0 < values['coco/bbox_mAP'] < 1
    assert kept['coco/bbox_mAP'].resampled(np.ones((1, 8)))[0] == pytest.approx(
        100 * values['coco/bbox_mAP'], abs=0.051
    )
    assert metric.compute_metrics == compute and type(metric).compute_metrics.__globals__['COCOeval'] is host


def test_mean_iou_is_recorded():
    torch.manual_seed(0)
    metric = IoUMetric()
    metric.dataset_meta = dict(classes=('a', 'b', 'c'))
    for _ in range(6):
        truth, guess = torch.randint(0, 2, (2, 1, 8, 8))
        metric.process({}, [dict(pred_sem_seg=dict(data=guess), gt_sem_seg=dict(data=truth))])
    results = [*metric.results]
    with recorded([metric]) as kept:
        values = metric.evaluate(6)
    counts = np.concatenate([np.ones((1, 6), int), choices(6, 3)])
    resampled = kept['mIoU'].resampled(counts)
    assert resampled[0] == pytest.approx(values['mIoU'], abs=0.006)
    for value, times in zip(resampled[1:], counts[1:]):
        chosen = [of_image for of_image, n in zip(results, times) for _ in range(n)]
        assert value == pytest.approx(metric.compute_metrics(chosen)['mIoU'], abs=0.006)


def test_panoptic_quality_is_recorded(monkeypatch):
    monkeypatch.setattr(
        'mmdet.evaluation.metrics.coco_panoptic_metric.print_panoptic_table', lambda *args, **kwargs: None
    )
    rng, results = np.random.default_rng(0), []
    for _ in range(5):
        stat = PQStat()
        for category in (1, 2):
            part = stat[category]
            part.tp, part.fp, part.fn = (int(n) for n in rng.integers(0, 4, 3))
            part.iou = part.tp * rng.uniform(0.5, 1)
        results.append(stat)
    metric = CocoPanopticMetric.__new__(CocoPanopticMetric)
    metric.categories = {1: dict(isthing=1), 2: dict(isthing=0), 3: dict(isthing=0)}
    vars(metric).update(tmp_dir=mock.Mock(), classwise=False, _coco_api=object(), prefix='coco_panoptic')
    with recorded([metric]) as kept:
        values = metric.compute_metrics(results)
    assert kept['coco_panoptic/PQ'].resampled(np.ones((1, 5)))[0] == pytest.approx(values['PQ'])


def test_other_metrics_are_left_alone():
    metric = IoUMetric(iou_metrics=['mDice'])
    metric.dataset_meta = dict(classes=('a', 'b'))
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    metric.process({}, [dict(pred_sem_seg=dict(data=labels), gt_sem_seg=dict(data=labels))])
    with recorded([metric]) as kept:
        assert 'mDice' in metric.evaluate(1)
    assert kept == {}


def test_the_error_of_a_gain_is_that_of_new_images():
    """By bootstrap from one set, against the spread over many; it is paired, so far below that of the figures."""
    rng = np.random.default_rng(0)

    def draw(images):
        below = rng.uniform(50, 100, (images, 2))
        above = below * rng.beta(4, 2, (images, 1))
        return MeanOfRatios(above, below), MeanOfRatios((above * rng.normal(1.02, 0.02, above.shape)).clip(0), below)

    once = np.ones((1, 200))
    gains = [after.resampled(once)[0] - before.resampled(once)[0] for before, after in (draw(200) for _ in range(300))]
    errors = [gain_error(*(resample(of, 200, seed)[1] for of in draw(200))) for seed in range(20)]
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.15)
    of_all, values = resample(draw(200)[0], 200)
    assert np.mean(errors) < 0.3 * values.std() and of_all == pytest.approx(values.mean(), abs=3 * values.std())
    assert gain_error(values, values) == 0
