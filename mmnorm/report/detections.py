"""What predictions say beyond AP: precision by recall, AP by size, and which classes are taken for others."""

import itertools

import numpy as np
import pandas as pd
from pycocotools import mask as mask_api

from .coco import class_names, match_objects
from .plots import Panel
from .runs import MARKS

WHAT = {'bbox': 'Box', 'segm': 'Mask'}
SIZES = {'small': 'APs', 'medium': 'APm', 'large': 'APl'}
MOST_CONFUSED = 12  # rows of the table
NOTHING, MISSED = 'nothing there', 'missed'


def precision_panels(evaluations):
    """Return panels of precision by recall, averaged over classes with objects: the area below is AP.

    Args:
        evaluations (list[dict[str, Evaluation]]): Of each run, {} for one without.

    Returns:
        list[Panel]: For boxes and masks, at IoU 0.50, at 0.75, and averaged over all thresholds.
    """
    return [
        Panel(
            f'{WHAT[iou_type]} precision, IoU {title}',
            'Precision (%)',
            [precision(of_run[iou_type], thresholds) if iou_type in of_run else None for of_run in evaluations],
            axis='Recall',
        )
        for iou_type in MARKS
        if any(iou_type in of_run for of_run in evaluations)
        for title, thresholds in (('0.50', [0]), ('0.75', [5]), ('0.50 to 0.95', slice(None)))
    ]


def precision(evaluation, thresholds):
    """Return precision in percent (Series) by recall, from 0 to 1, of objects of all sizes at some IoU thresholds."""
    values = evaluation.coco_eval.eval['precision'][thresholds, :, :, 0, -1]  # (thresholds, recalls, classes)
    values = np.where(values > -1, values, np.nan)
    recalls = evaluation.coco_eval.params.recThrs
    with_objects = ~np.isnan(values).all(axis=(0, 1))
    return pd.Series(100 * values[:, :, with_objects].mean(axis=(0, 2)) if with_objects.any() else np.nan, recalls)


def size_tables(runs, evaluations):
    """Return AP in percent by size, as ``collect_class_ap`` does by class: a DataFrame of sizes (rows) and runs
    (columns) for 'Box AP' and 'Mask AP', without sizes of which no run's test set has objects."""
    tables = {}
    for iou_type, title in WHAT.items():
        found = {run.name: of_run[iou_type] for run, of_run in zip(runs, evaluations) if iou_type in of_run}
        if found:
            table = pd.DataFrame(
                {name: [evaluation.summary[metric] for metric in SIZES.values()] for name, evaluation in found.items()},
                index=[f'{size}: {number}' for size, number in size_counts(next(iter(found.values()))).items()],
            )
            tables[f'{title} AP'] = table.reindex(columns=[run.name for run in runs]).dropna(how='all')
    return {title: table for title, table in tables.items() if not table.empty}


def size_counts(evaluation):
    """Return how many objects of each size are in the test set (dict)."""
    coco_gt, params = evaluation.coco_eval.cocoGt, evaluation.coco_eval.params
    objects = coco_gt.loadAnns(coco_gt.getAnnIds(catIds=params.catIds, iscrowd=False))
    areas = np.array([annotation['area'] for annotation in objects])
    return {size: int(((areas >= low) & (areas <= high)).sum()) for size, (low, high) in zip(SIZES, params.areaRng[1:])}


def confusion(coco_eval, score_thr):
    """Count which classes objects are taken for.

    Args:
        coco_eval (COCOeval): Evaluated.
        score_thr (float): Predictions with a lower score do not count.

    Returns:
        DataFrame: Objects by class (rows; the last is 'nothing there') and predictions by class (columns; the last is
        'missed'). A prediction that is right, as ``match_objects`` says, is on the diagonal; a false one belongs to the
        missed object of its image that it overlaps most, with an IoU of at least 0.5, better scores first.
    """
    places = {category: place for place, category in enumerate(coco_eval.params.catIds)}
    last = len(places)
    counts = np.zeros((last + 1, last + 1), int)
    for _, outcomes in match_objects(coco_eval, score_thr).groupby('image_id'):
        ids = outcomes.groupby('outcome')['id'].apply(list)
        hits, false = (coco_eval.cocoDt.loadAnns(ids.get(outcome, [])) for outcome in ('hit', 'false'))
        missed = coco_eval.cocoGt.loadAnns(ids.get('missed', []))
        for prediction in hits:
            counts[(places[prediction['category_id']],) * 2] += 1
        false.sort(key=lambda prediction: -prediction['score'])
        free = np.ones(len(missed), bool)  # an object is taken for one thing only
        for prediction, ious in zip(false, iou_matrix(coco_eval, false, missed)):
            row, ious = last, ious * free
            if ious.size and ious.max() >= 0.5:
                free[ious.argmax()] = False
                row = places[missed[ious.argmax()]['category_id']]
            counts[row, places[prediction['category_id']]] += 1
        for annotation in itertools.compress(missed, free):
            counts[places[annotation['category_id']], last] += 1
    names = class_names(coco_eval)
    return pd.DataFrame(counts, [*names, NOTHING], [*names, MISSED])


def iou_matrix(coco_eval, predictions, objects):
    """Return the IoU (array) of predictions (rows) and objects (columns): of masks, or else of boxes."""
    if not predictions or not objects:
        return np.zeros((len(predictions), len(objects)))
    if coco_eval.params.iouType == 'segm':
        predictions = [coco_eval.cocoDt.annToRLE(annotation) for annotation in predictions]
        objects = [coco_eval.cocoGt.annToRLE(annotation) for annotation in objects]
    else:
        predictions, objects = ([annotation['bbox'] for annotation in of] for of in (predictions, objects))
    return np.array(mask_api.iou(predictions, objects, [0] * len(objects)))


def most_confused(matrices):
    """Return the most frequent confusions of two classes.

    Args:
        matrices (dict[str, DataFrame]): Of each run, from :func:`confusion`.

    Returns:
        DataFrame: What was taken for what (rows, 'a as b') and how often in each run (columns).
    """
    counts = {
        run: {
            f'{row} as {column}': matrix.iat[i, j]
            for i, row in enumerate(matrix.index[:-1])
            for j, column in enumerate(matrix.columns[:-1])
            if i != j and matrix.iat[i, j]
        }
        for run, matrix in matrices.items()
    }
    table = pd.DataFrame(counts).fillna(0).astype(int)
    return table.loc[table.sum(axis=1).sort_values(ascending=False, kind='stable').index[:MOST_CONFUSED]]
