"""Precision by recall, AP by size and confusions, against AP and against counts by hand."""

import itertools

import numpy as np
import pytest
from pycocotools.coco import COCO

from mmnorm.report import evaluate_coco, load_run
from mmnorm.report.coco import match_objects
from mmnorm.report.detections import MISSED, NOTHING, confusion, most_confused, precision, precision_panels, size_tables

from .conftest import CLASSES, encode, make_predictions


@pytest.fixture
def coco_gt(data_root):
    return COCO(data_root / 'val.json')


@pytest.fixture(params=['bbox', 'segm'])
def evaluation(request, coco_gt, data_root):
    found = dict(zip(('bbox', 'segm'), make_predictions(data_root, 1)))[request.param]
    for prediction in found[::3]:
        prediction['category_id'] = prediction['category_id'] % 3 + 1
    return evaluate_coco(coco_gt, found, request.param)


def test_the_area_below_a_curve_is_ap(evaluation):
    for thresholds, metric in (([0], 'AP50'), ([5], 'AP75'), (slice(None), 'AP')):
        curve = precision(evaluation, thresholds)
        assert curve.mean() == pytest.approx(evaluation.summary[metric], abs=0.051)
        assert curve.index[0] == 0 and curve.index[-1] == 1 and len(curve) == 101


def test_curves_without_predictions_or_objects(coco_gt):
    assert (precision(evaluate_coco(coco_gt, [], 'bbox'), [0]) == 0).all()
    coco_gt.dataset['annotations'] = []
    coco_gt.createIndex()
    assert precision(evaluate_coco(coco_gt, [], 'bbox'), [0]).isna().all()


def test_panels_have_a_curve_of_each_evaluated_run(evaluation):
    panels = precision_panels([{}, {evaluation.iou_type: evaluation}])
    what = {'bbox': 'Box', 'segm': 'Mask'}[evaluation.iou_type]
    titles = [f'{what} precision, IoU {iou}' for iou in ('0.50', '0.75', '0.50 to 0.95')]
    assert [panel.title for panel in panels] == titles
    assert all(panel.curves[0] is None and len(panel.curves[1]) == 101 for panel in panels)


def test_sizes(evaluation, coco_gt, make_run):
    run = load_run(make_run())
    (table,) = size_tables([run], [{evaluation.iou_type: evaluation}]).values()
    areas = np.array([annotation['area'] for annotation in coco_gt.anns.values()])
    small, medium = (areas < 32**2).sum(), (areas >= 32**2).sum()
    assert list(table.index) == [f'small: {small}', f'medium: {medium}']  # there are no large objects
    assert list(table['run']) == [evaluation.summary['APs'], evaluation.summary['APm']]


def test_every_object_and_prediction_is_counted_once(evaluation, coco_gt):
    matrix, outcomes = confusion(evaluation.coco_eval, 0.4), match_objects(evaluation.coco_eval, 0.4)['outcome']
    counts = outcomes.value_counts()
    assert np.trace(matrix.iloc[:-1, :-1]) == counts['hit'] == counts['found']
    assert matrix.iloc[:-1].to_numpy().sum() == len(coco_gt.anns)
    assert matrix.iloc[:, :-1].to_numpy().sum() == counts['hit'] + counts['false']
    taken = matrix.iloc[:-1, :-1].to_numpy().sum() - counts['hit']
    assert taken > 0 and matrix[MISSED].sum() == counts['missed'] - taken
    assert list(matrix.index) == [*CLASSES, NOTHING] and matrix.at[NOTHING, MISSED] == 0


@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_confusions_by_hand(coco_gt, iou_type):
    """In image 1: one is right; one has two predictions of other classes, of which the better one counts for it; one
    is missed. A prediction lies beside all, and one has too low a score."""
    first, second, third = coco_gt.imgToAnns[1]
    kinds = [annotation['category_id'] for annotation in (first, second, third)]
    others = [category for category in (1, 2, 3) if category != kinds[1]]
    predictions = [
        dict(first, score=0.9),
        dict(second, score=0.6, category_id=others[0]),
        dict(second, score=0.8, category_id=others[1]),
        dict(third, score=0.3),
        dict(image_id=1, category_id=1, score=0.7, bbox=[90, 60, 5, 3], segmentation=encode(90, 60, 5, 3)),
    ]
    matrix = confusion(evaluate_coco(coco_gt, predictions, iou_type).coco_eval, 0.5)
    expected = np.zeros((4, 4), int)
    for row, column in (
        (kinds[0], kinds[0]),
        (kinds[1], others[1]),
        (4, others[0]),
        (4, 1),
        *((annotation['category_id'], 4) for annotation in coco_gt.anns.values() if annotation['image_id'] > 1),
        (kinds[2], 4),
    ):
        expected[row - 1, column - 1] += 1
    assert matrix.to_numpy().tolist() == expected.tolist()


def test_most_confused(evaluation):
    matrix = confusion(evaluation.coco_eval, 0.5)
    table = most_confused({'a': matrix, 'b': matrix * 0})
    pairs = [(row, column) for row, column in itertools.permutations(CLASSES, 2) if matrix.at[row, column]]
    assert set(table.index) == {f'{row} as {column}' for row, column in pairs}
    assert table['a'].is_monotonic_decreasing and (table['b'] == 0).all() and table['a'].sum() > 0
    assert most_confused({}).empty and most_confused({'b': matrix * 0}).empty
