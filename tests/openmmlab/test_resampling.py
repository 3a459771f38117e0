"""Metrics of resampled images are what the hosts' evaluators give for them, and gains have the errors they should."""

import contextlib
import io
import json
from multiprocessing.pool import ThreadPool
from unittest import mock

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric, CocoPanopticMetric, LVISMetric, VOCMetric
from mmengine.evaluator import BaseMetric
from mmseg.evaluation import IoUMetric
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmnorm.openmmlab.panoptic import PQStat
from mmnorm.openmmlab.resampling import FigureOfSums, choices, gain_error, of_coco, recorded, resample

CLASSES = ('a', 'b', 'never')
CATEGORIES = [dict(id=i, name=name, frequency='f') for i, name in enumerate(CLASSES, 1)]


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


def repeated(objects, found, images):
    """A data set, and what is found in it, of images (list of ids), which may occur more than once."""
    number = {}
    for new, image in enumerate(images, 1):
        number.setdefault(image, []).append(new)
    data = dict(images=[dict(id=new, **looked_for(image)) for new, image in enumerate(images, 1)])
    data['annotations'] = [
        dict(one, image_id=new, ignore=one['iscrowd']) for one in objects for new in number.get(one['image_id'], ())
    ]
    for i, one in enumerate(data['annotations'], 1):
        one['id'] = i
    results = [dict(one, image_id=new) for one in found for new in number.get(one['image_id'], ())]
    return dict(data, categories=CATEGORIES), results


def looked_for(image):
    """Of an image of LVIS, beside the categories that are in it."""
    return dict(neg_category_ids=[1] if image % 3 else [], not_exhaustive_category_ids=[] if image % 4 else [2])


def evaluate(objects, found, images):
    """pycocotools' evaluation of images."""
    data, results = repeated(objects, found, images)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = data
        truth.createIndex()
        coco_eval = COCOeval(truth, truth.loadRes(results), 'bbox')
        coco_eval.params.maxDets = [100, 300, 1000]
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    return coco_eval


def samples(objects, found, images):
    """What a detector gives to metrics of mmdet for images."""
    for image in images:
        truth, of_image = ([one for one in of if one['image_id'] == image] for of in (objects, found))
        instances = [
            dict(bbox=corners(one).tolist(), bbox_label=one['category_id'] - 1, ignore_flag=one['iscrowd'])
            for one in truth
        ]
        yield dict(
            img_id=image,
            ori_shape=(100, 100),
            pred_instances=dict(tensors(of_image), scores=torch.tensor([one['score'] for one in of_image])),
            instances=instances,
            gt_instances=tensors(one for one in truth if not one['iscrowd']),
            ignored_instances=tensors(one for one in truth if one['iscrowd']),
        )


def corners(one):
    x, y, w, h = one['bbox']
    return torch.tensor([x, y, x + w, y + h])


def tensors(of_image):
    of_image = [*of_image]
    boxes = torch.stack([corners(one) for one in of_image]) if of_image else torch.zeros(0, 4)
    return dict(bboxes=boxes, labels=torch.tensor([one['category_id'] - 1 for one in of_image], dtype=torch.int64))


@pytest.fixture
def lvis(monkeypatch):
    """LVIS's package, which no extra installs: with it, mmdet imports pyplot and sets up Python's logging."""
    lvis = pytest.importorskip('lvis')  # passed on 2026-11-27, with lvis 0.5.3
    monkeypatch.setattr(np, 'float', float, raising=False)  # which its release expects, and numpy has no more
    return lvis


@pytest.mark.parametrize('seed', range(4))
def test_average_precision_of_resampled_images_is_pycocotools(seed, monkeypatch):
    if seed == 3:
        monkeypatch.setattr('mmnorm.openmmlab.resampling._CHUNK', 50)  # images of which go by chunks
    objects, found = boxes_of(np.random.default_rng(seed), detections=300 if seed == 2 else 6)  # more than count
    ours = of_coco(evaluate(objects, found, range(1, 13)))['bbox_mAP']
    counts = np.concatenate([np.ones((1, 12), int), choices(12, 5, seed)])
    values = ours.resampled(counts)
    assert len(set(values.round(6))) > 3
    for value, times in zip(values, counts):
        # equal scores of an image that is taken twice follow each other in the order of images, as ours do
        theirs = evaluate(objects, found, np.repeat(np.arange(1, 13), times)).stats[0]
        assert value == pytest.approx(100 * theirs, abs=1e-6)


@pytest.mark.parametrize('seed', range(3))
def test_average_precision_of_resampled_images_is_that_of_lvis(seed, lvis, tmp_path):
    """By its rules: of images where a category was looked for, and not against what may not be labeled."""
    objects, found = boxes_of(np.random.default_rng(seed), detections=300 if seed == 2 else 6)

    def theirs(images):
        data, results = repeated(objects, found, images)
        (tmp_path / 'data.json').write_text(json.dumps(data))
        truth = lvis.LVIS(str(tmp_path / 'data.json'))
        evaluation = lvis.LVISEval(truth, lvis.LVISResults(truth, results), 'bbox')
        evaluation.run()
        return evaluation

    ours = of_coco(theirs(range(1, 13)))['bbox_AP']
    counts = np.concatenate([np.ones((1, 12), int), choices(12, 5, seed)])
    values = ours.resampled(counts)
    assert len(set(values.round(6))) > 3
    for value, times in zip(values, counts):
        of_theirs = theirs(np.repeat(np.arange(1, 13), times)).results['AP']
        assert value == pytest.approx(100 * of_theirs, abs=1e-6)
    assert values[0] != pytest.approx(100 * evaluate(objects, found, range(1, 13)).stats[0], abs=0.1)


def test_the_metric_of_lvis_is_recorded_with_its_own_figure(lvis, tmp_path):
    objects, found = boxes_of(np.random.default_rng(1))
    path = tmp_path / 'data.json'
    path.write_text(json.dumps(repeated(objects, found, range(1, 13))[0]))
    metric = LVISMetric(str(path))
    metric.dataset_meta = dict(classes=CLASSES)
    metric.process({}, samples(objects, found, range(1, 13)))
    metric.cat_ids = [1, 2, 3]
    with contextlib.redirect_stdout(io.StringIO()), recorded([metric]) as kept:
        values = metric.evaluate(12)
    assert kept.keys() == {'lvis/bbox_AP'} and 0 < values['lvis/bbox_AP'] < 1
    assert kept['lvis/bbox_AP'].resampled(np.ones((1, 12)))[0] == pytest.approx(100 * values['lvis/bbox_AP'], abs=0.051)


@pytest.mark.parametrize('mode, thresholds', [('11points', 0.5), ('area', [0.5, 0.7])])
def test_the_metric_of_voc_of_resampled_images(mode, thresholds, monkeypatch):
    monkeypatch.setattr('mmdet.evaluation.functional.mean_ap.Pool', ThreadPool)  # no processes
    objects, found = boxes_of(np.random.default_rng(0))

    def metric_of(images):
        metric = VOCMetric(thresholds, eval_mode=mode)
        metric.dataset_meta = dict(classes=CLASSES)
        metric.process({}, samples(objects, found, images))
        return metric

    metric, counts = metric_of(range(1, 13)), np.concatenate([np.ones((1, 12), int), choices(12, 5)])
    with recorded([metric]) as kept:
        metric.evaluate(12)
    assert kept.keys() == {'pascal_voc/mAP'}
    values = kept['pascal_voc/mAP'].resampled(counts)
    assert len(set(values.round(6))) > 3
    for value, times in zip(values, counts):
        images = np.repeat(np.arange(1, 13), times)
        theirs = metric_of(images).evaluate(len(images))['pascal_voc/mAP']
        assert value == pytest.approx(100 * theirs, abs=1e-4)  # theirs is of single precision


def test_no_object_among_the_images_is_nan():
    objects, found = boxes_of(np.random.default_rng(0))
    empty = [image for image in range(1, 13) if image not in {one['image_id'] for one in objects}]
    assert empty
    counts = np.zeros((2, 12), int)
    counts[0, empty[0] - 1], counts[1] = 12, 1
    ours = of_coco(evaluate(objects, found, range(1, 13)))['bbox_mAP']
    assert np.isnan(ours.resampled(counts)).tolist() == [True, False]


def test_cocos_metric_is_recorded_with_its_own_figure(tmp_path):
    objects, found = boxes_of(np.random.default_rng(1), images=8)
    metric = CocoMetric(metric='bbox')
    metric.dataset_meta = dict(classes=CLASSES)
    metric.process({}, samples(objects, found, range(1, 9)))
    compute, host = metric.compute_metrics, type(metric).compute_metrics.__globals__['COCOeval']
    with contextlib.redirect_stdout(io.StringIO()), recorded([metric]) as kept:
        values = metric.evaluate(8)
    assert kept.keys() == {'coco/bbox_mAP'} and 0 < values['coco/bbox_mAP'] < 1
    assert kept['coco/bbox_mAP'].resampled(np.ones((1, 8)))[0] == pytest.approx(
        100 * values['coco/bbox_mAP'], abs=0.051
    )
    assert metric.compute_metrics == compute and type(metric).compute_metrics.__globals__['COCOeval'] is host


@pytest.mark.parametrize(
    'options, keys',
    [
        (dict(), ['aAcc', 'mAcc', 'mIoU']),
        (dict(iou_metrics=['mIoU'], nan_to_num=0), ['aAcc', 'mAcc', 'mIoU']),
        (dict(iou_metrics=['mDice']), ['aAcc', 'mAcc', 'mDice']),
        (dict(iou_metrics=['mFscore'], beta=2), ['aAcc', 'mFscore', 'mPrecision', 'mRecall']),
        (dict(iou_metrics=['mFscore', 'mIoU'], prefix='x'), None),
    ],
)
def test_the_metrics_of_areas_are_recorded(options, keys):
    torch.manual_seed(0)
    metric = IoUMetric(**options)
    metric.dataset_meta = dict(classes=('a', 'b', 'c', 'd'))
    for i in range(6):
        truth, guess = torch.randint(0, 2, (2, 1, 8, 8))
        guess[0, i, 0] = 2  # a class that is never there, and the last is not even found
        metric.process({}, [dict(pred_sem_seg=dict(data=guess), gt_sem_seg=dict(data=truth))])
    results = [*metric.results]
    with recorded([metric]) as kept:
        values = metric.evaluate(6)
    assert kept.keys() == values.keys() and (keys is None or sorted(values) == keys)
    counts = np.concatenate([np.ones((1, 6), int), choices(6, 3)])
    for key, ours in kept.items():
        resampled = ours.resampled(counts)
        assert resampled[0] == pytest.approx(values[key], abs=0.006) and resampled.std() > 0
        for value, times in zip(resampled, counts):
            chosen = [of_image for of_image, n in zip(results, times) for _ in range(n)]
            theirs = metric.compute_metrics(chosen)[key.removeprefix('x/')]
            assert value == pytest.approx(theirs, abs=0.006)


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
    counts = np.concatenate([np.ones((1, 5), int), choices(5, 3)])
    resampled = kept['coco_panoptic/PQ'].resampled(counts)
    assert resampled[0] == pytest.approx(values['PQ'])
    for value, times in zip(resampled, counts):
        chosen = [of_image for of_image, n in zip(results, times) for _ in range(n)]
        assert value == pytest.approx(metric.compute_metrics(chosen)['PQ'])


@pytest.mark.parametrize(
    'options, keys',
    [
        (dict(topk=(1, 2)), ['accuracy/top1', 'accuracy/top2']),
        (dict(thrs=(None, 0.4)), ['accuracy/top1_no-thr', 'accuracy/top1_thr-0.40']),
    ],
)
def test_accuracy_is_recorded(options, keys):
    metric = pytest.importorskip('mmpretrain.evaluation').Accuracy(**options)
    torch.manual_seed(0)
    scores = torch.rand(30, 4).softmax(1)
    results = [dict(pred_score=score, gt_label=torch.randint(0, 4, (1,))) for score in scores]
    metric.results = list(results)
    with recorded([metric]) as kept:
        values = metric.evaluate(30)
    assert sorted(values) == sorted(kept) == keys
    counts = np.concatenate([np.ones((1, 30), int), choices(30, 3)])
    for key, ours in kept.items():
        for value, times in zip(ours.resampled(counts), counts):
            chosen = [of_image for of_image, n in zip(results, times) for _ in range(n)]
            assert value == pytest.approx(metric.compute_metrics(chosen)[key.removeprefix('accuracy/')], abs=1e-4)
    # labels alone
    metric.results = [dict(pred_label=torch.tensor([i % 2]), gt_label=torch.tensor([0])) for i in range(6)]
    with recorded([metric]) as kept:
        assert metric.evaluate(6) == {'accuracy/top1': 50}
    assert kept['accuracy/top1'].resampled(np.array([[2, 1, 2, 0, 1, 0]])) == pytest.approx(100 * 5 / 6)


def test_other_metrics_are_left_alone():
    class Other(BaseMetric):  # as VOC's for rotated boxes
        eval_mode = 'area'

        def process(self, data_batch, data_samples):
            self.results.append(data_samples)

        def compute_metrics(self, results):
            return dict(mAP=0.5, mIoU=0.5, PQ=0.5)

    metric = Other()
    metric.process({}, [1])
    with recorded([metric]) as kept:
        assert metric.evaluate(1)['mAP'] == 0.5
    assert kept == {}


def test_the_error_of_a_gain_is_that_of_new_images():
    """By bootstrap from one set, against the spread over many; it is paired, so far below that of the figures."""
    rng = np.random.default_rng(0)

    def draw(images):
        below = rng.uniform(50, 100, (images, 2))
        above = below * rng.beta(4, 2, (images, 1))
        after = (above * rng.normal(1.02, 0.02, above.shape)).clip(0)
        return [
            FigureOfSums(np.stack([of, below], 1), lambda sums: 100 * (sums[0] / sums[1]).mean())
            for of in (above, after)
        ]

    once = np.ones((1, 200))
    gains = [after.resampled(once)[0] - before.resampled(once)[0] for before, after in (draw(200) for _ in range(300))]
    errors = [gain_error(*(resample(of, 200, seed)[1] for of in draw(200))) for seed in range(20)]
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.15)
    of_all, values = resample(draw(200)[0], 200)
    assert np.mean(errors) < 0.3 * values.std() and of_all == pytest.approx(values.mean(), abs=3 * values.std())
    assert gain_error(values, values) == 0
