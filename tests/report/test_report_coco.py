"""COCO evaluation against pycocotools and mmdet, and what is found, missed and false in an image."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmnorm.report import evaluate_coco
from mmnorm.report.coco import match_objects
from mmnorm.report.images import choose_images

from .conftest import CLASSES, HEIGHT, WIDTH, encode, make_predictions


@pytest.fixture
def coco_gt(data_root):
    return COCO(data_root / 'val.json')


@pytest.fixture
def predictions(data_root):
    """By 'bbox' and 'segm'."""
    return dict(zip(('bbox', 'segm'), make_predictions(data_root, 1)))


def reference(coco_gt, predictions, iou_type, category=None):
    """Return pycocotools' own six figures in percent, of one category or all."""
    coco_dt = coco_gt.loadRes(
        [
            {key: value for key, value in prediction.items() if key != 'bbox' or iou_type == 'bbox'}
            for prediction in predictions
        ]
    )
    coco_eval = COCOeval(coco_gt, coco_dt, iou_type)
    if category:
        coco_eval.params.catIds = [category]
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()
    return [100 * value if value >= 0 else np.nan for value in coco_eval.stats[:6]]


@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_figures_are_those_of_pycocotools(coco_gt, predictions, iou_type):
    evaluation = evaluate_coco(coco_gt, predictions[iou_type], iou_type)
    expected = reference(coco_gt, predictions[iou_type], iou_type)
    assert list(evaluation.summary.values()) == pytest.approx(expected, abs=0.051, nan_ok=True)
    assert 0 < expected[0] < 100 and np.isnan(expected[5])
    for category, name in enumerate(CLASSES, 1):
        expected = reference(coco_gt, predictions[iou_type], iou_type, category)[0]
        assert evaluation.per_class[name] == pytest.approx(expected, abs=0.051)


def test_figures_are_those_of_mmdet(data_root, coco_gt, tmp_path):
    """Half of the objects are found only after 120 false predictions of each class: beyond the 100 that count for AP,
    within the 1000 that count for AP50."""
    metrics = pytest.importorskip('mmdet.evaluation.metrics', reason='mmdet is not installed')
    torch = pytest.importorskip('torch')
    metric = metrics.CocoMetric(
        ann_file=str(data_root / 'val.json'), metric=['bbox', 'segm'], outfile_prefix=str(tmp_path / 'predictions')
    )
    metric.dataset_meta = dict(classes=CLASSES)
    for image_id, annotations in coco_gt.imgToAnns.items():
        found = [
            (annotation['bbox'], annotation['category_id'] - 1, (0.9, 0.1)[annotation['id'] % 2])
            for annotation in annotations
        ]
        made_up = [((90, 60, 5, 3), label, 0.5) for label in range(3) for _ in range(120)]
        boxes, labels, scores = zip(*found, *made_up)
        boxes = torch.tensor(boxes)
        boxes[:, 2:] += boxes[:, :2]
        masks = torch.zeros((len(boxes), HEIGHT, WIDTH), dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes.tolist()):
            mask[top:bottom, left:right] = True
        prediction = dict(bboxes=boxes.float(), labels=torch.tensor(labels), scores=torch.tensor(scores), masks=masks)
        metric.process({}, [dict(img_id=image_id, ori_shape=(HEIGHT, WIDTH), pred_instances=prediction)])
    logged = metric.evaluate(len(coco_gt.imgs))
    for iou_type in ('bbox', 'segm'):
        predictions = json.loads((tmp_path / f'predictions.{iou_type}.json').read_text())
        summary = evaluate_coco(coco_gt, predictions, iou_type, CLASSES).summary
        for name, suffix in zip(summary, ('', '_50', '_75', '_s', '_m')):
            assert summary[name] == pytest.approx(100 * logged[f'coco/{iou_type}_mAP{suffix}'], abs=1e-6)
        assert logged[f'coco/{iou_type}_mAP_l'] == -1 and np.isnan(summary['APl'])
        assert summary['AP50'] > summary['AP'] > 0


def test_only_the_classes_of_the_config_count(coco_gt, predictions):
    evaluation = evaluate_coco(coco_gt, predictions['bbox'], 'bbox', classes=CLASSES[:1])
    assert list(evaluation.per_class.index) == [CLASSES[0]]
    assert evaluation.summary['AP'] == evaluation.per_class[CLASSES[0]]


def test_no_predictions_at_all(coco_gt):
    assert evaluate_coco(coco_gt, [], 'segm').summary['AP'] == 0


def test_ground_truth_as_predictions(coco_gt):
    perfect = [dict(annotation, score=1.0) for annotation in coco_gt.anns.values()]
    assert evaluate_coco(coco_gt, perfect, 'segm').summary['AP'] == 100


def test_size_of_a_mask_is_its_own(coco_gt):
    """Not that of the box which was predicted with it: a false small mask in a medium box harms APs, not APm."""
    perfect = [dict(annotation, score=0.9) for annotation in coco_gt.anns.values()]
    false = [
        dict(image_id=1, category_id=category, score=1.0, bbox=[0, 0, 90, 60], segmentation=encode(90, 60, 5, 3))
        for category in (1, 2, 3)
    ]
    summary = evaluate_coco(coco_gt, perfect + false, 'segm').summary
    assert summary['APs'] < 100 and summary['APm'] == 100


def test_predictions_that_do_not_fit(coco_gt, predictions):
    stranger = dict(predictions['bbox'][0], image_id=99)
    with pytest.raises(ValueError, match='1 predicted images .* id 99'):
        evaluate_coco(coco_gt, [stranger], 'bbox')
    with pytest.raises(ValueError, match='three numbers'):
        evaluate_coco(coco_gt, predictions['bbox'], 'bbox', proposal_nums=[300])
    with pytest.raises(ValueError, match='not every prediction has .*segmentation'):
        evaluate_coco(coco_gt, predictions['bbox'], 'segm')
    del next(iter(coco_gt.anns.values()))['segmentation']
    with pytest.raises(ValueError, match='have no masks'):
        evaluate_coco(coco_gt, predictions['segm'], 'segm')


def test_predictions_are_left_as_they_were(coco_gt, predictions):
    before = json.dumps(predictions)
    for iou_type in ('bbox', 'segm'):
        evaluate_coco(coco_gt, predictions[iou_type], iou_type)
    assert json.dumps(predictions) == before


def test_classes_of_one_name_are_told_apart(coco_gt, predictions):
    coco_gt.cats[3]['name'] = CLASSES[0]
    names = evaluate_coco(coco_gt, predictions['bbox'], 'bbox').per_class.index
    assert list(names) == [f'{CLASSES[0]} (id 1)', CLASSES[1], f'{CLASSES[0]} (id 3)']


def test_found_missed_and_false(coco_gt):
    """In image 1 one object is hit, one only below the score, one not at all; one prediction has another class."""
    first, second, third = coco_gt.imgToAnns[1]
    predictions = [
        dict(first, score=0.9),
        dict(second, score=0.4),
        dict(third, score=0.8, category_id=third['category_id'] % 3 + 1),
    ]
    outcomes = match_objects(evaluate_coco(coco_gt, predictions, 'bbox').coco_eval, score_thr=0.5)
    image = outcomes[outcomes['image_id'] == 1]
    by_outcome = {outcome: set(ids) for outcome, ids in image.groupby('outcome')['id']}
    assert by_outcome == {'found': {first['id']}, 'missed': {second['id'], third['id']}, 'hit': {1}, 'false': {3}}


def test_choice_of_images(coco_gt):
    """All of images 1, 2 and 4 are found, nothing of the others."""
    predictions = [dict(annotation, score=1.0) for annotation in coco_gt.loadAnns(coco_gt.getAnnIds(imgIds=[1, 2, 4]))]
    outcomes = match_objects(evaluate_coco(coco_gt, predictions, 'bbox').coco_eval, score_thr=0.5)
    assert choose_images(outcomes, coco_gt.imgs, 3) == ([1, 6], [3])
    assert choose_images(outcomes, coco_gt.imgs, 0) == ([], [])
    evenly, worst = choose_images(outcomes, coco_gt.imgs, 100)
    assert sorted(evenly + worst) == sorted(coco_gt.imgs)
    nothing_in_5 = outcomes[outcomes['image_id'] != 5]
    assert choose_images(nothing_in_5, coco_gt.imgs, 6) == ([1, 3, 4, 6], [2, 5])  # 5 is as good as 2
