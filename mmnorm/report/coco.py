"""COCO's evaluation of predictions in COCO's results format, in total, per class and per image."""

import contextlib
import io
import logging
from dataclasses import dataclass

import pandas as pd
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmnorm.files import checksum, read_json

from .runs import COCO_METRICS, COCO_NAMES, MARKS, as_dict, percent
from .texts import one_line

LOGGER = logging.getLogger(__name__)
# As in mmdet's CocoMetric, so that the figures are those it prints. pycocotools then takes AP over the 100 best
# detections of an image and AP50 ... APl over 1000; with at most 100 predictions an image, that is standard COCO.
PROPOSAL_NUMS = (100, 300, 1000)


@dataclass
class Evaluation:
    """COCO's verdict on the predictions of a run.

    Attributes:
        iou_type: 'bbox' or 'segm'.
        summary: 'AP', 'AP50', 'AP75', 'APs', 'APm', 'APl' in percent; NaN where there are no such objects.
        per_class: AP in percent by class name, in the order of the category ids.
        coco_eval: pycocotools' evaluator, with its matches, ground truth (cocoGt) and predictions (cocoDt).
    """

    iou_type: str
    summary: dict
    per_class: pd.Series
    coco_eval: COCOeval


def evaluate_run(run):
    """Evaluate ``predictions.bbox.json`` and ``predictions.segm.json`` of a run on its test set.

    Args:
        run (Run): Gets a note for every part that is missing, with what would bring it.

    Returns:
        dict[str, Evaluation]: By 'bbox' and 'segm'; without those that cannot be evaluated.
    """
    logged = {*run.val, *run.test}
    files = {iou_type: run.work_dir / f'predictions.{iou_type}.json' for iou_type in MARKS}
    present = {iou_type: path for iou_type, path in files.items() if path.exists() and not of_another_test(run, path)}
    if not present and not logged:
        run.notes.append(
            'There is no evaluation: neither predictions nor a logged validation or test. '
            f'{run.test_command} makes one.'
        )
        return {}
    if not present and not logged & set(COCO_NAMES.values()):
        run.notes.append("The metrics of this run are not COCO's: no AP tables, no AP per class, no images.")
        return {}
    expected = [iou_type for iou_type, mark in MARKS.items() if iou_type == 'bbox' or f'AP^{mark}' in logged]
    missing = [files[iou_type].name for iou_type in expected if not files[iou_type].exists()]
    if missing:
        run.notes.append(
            f'{" and ".join(missing)} missing from {run.work_dir}: these figures are those of the log, '
            f'without AP per class and images. {run.test_command} writes the predictions.'
        )
    if not present:
        return {}
    if run.ann_file is None:
        run.notes.append(
            f'The annotation file of the test set ({run.test_dataset.get("ann_file", "unknown")} in '
            f'{run.test_dataset.get("data_root", "unknown")}) is missing: the figures are those of the '
            'log, without AP per class and images. Put the data set back where the config says.'
        )
        return {}
    return dict(evaluations(run, present))


def of_another_test(run, path):
    """Whether a file of predictions is not that of the newest test, whose figures stand beside it; a note if so."""
    if run.predictions is None or run.predictions.get(path.name) == checksum(path):
        return False
    run.notes.append(
        f'{path} is not what the newest test or training left, as when a test was interrupted or a training followed: '
        f'it is not evaluated. {run.test_command} writes it anew.'
    )
    return True


def evaluations(run, files):
    """Yield (iou_type, Evaluation) for each predictions file; a note to the run for those that cannot be evaluated."""
    evaluator = run.config.get('test_evaluator')
    proposal_nums = evaluator.get('proposal_nums', PROPOSAL_NUMS) if isinstance(evaluator, dict) else PROPOSAL_NUMS
    classes = as_dict(run.test_dataset.get('metainfo')).get('classes')
    try:
        coco_gt = read_annotations(run.ann_file)
    except ValueError as error:
        run.notes.append(f'No evaluation: {error}.')
        return
    for iou_type, path in files.items():
        LOGGER.info('%s: evaluating %s on %d images', one_line(run.name), path.name, len(coco_gt.imgs))
        try:
            yield iou_type, evaluate_coco(coco_gt, read_json(path), iou_type, classes, proposal_nums)
        except ValueError as error:
            run.notes.append(f'{path} was not evaluated: {error}.')


def read_annotations(path):
    """Return the COCO object of an annotation file.

    Raises:
        ValueError: The file is not in COCO's format.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return COCO(path)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise ValueError(f"{path} is not in COCO's annotation format ({type(error).__name__}: {error})") from error


def evaluate_coco(coco_gt, predictions, iou_type, classes=None, proposal_nums=PROPOSAL_NUMS):
    """Evaluate predictions as mmdet's CocoMetric does.

    Args:
        coco_gt (COCO): Ground truth.
        predictions (list[dict]): COCO's results format: image_id, category_id, score and bbox (x, y, width, height in
            pixels) or segmentation (run lengths).
        iou_type (str): 'bbox' or 'segm'.
        classes (sequence[str], optional): Names of the classes that count. Defaults to all.
        proposal_nums (sequence[int]): Three numbers of best detections of an image, CocoMetric's argument.

    Returns:
        Evaluation

    Raises:
        ValueError: Predictions lack one of these keys or are for images that the ground truth does not have, the ground
            truth has no masks, or ``proposal_nums`` are not three.
    """
    required = {'image_id', 'category_id', 'score', 'bbox' if iou_type == 'bbox' else 'segmentation'}
    if not isinstance(predictions, list) or not all(
        isinstance(prediction, dict) and required <= prediction.keys() for prediction in predictions
    ):
        raise ValueError(f'not every prediction has {", ".join(sorted(required))}')
    if len(proposal_nums) != 3:
        raise ValueError(f'proposal_nums must be three numbers, got {proposal_nums}')
    strangers = {prediction['image_id'] for prediction in predictions} - set(coco_gt.imgs)
    if strangers:
        raise ValueError(f'{len(strangers)} predicted images are not annotated, e.g. id {min(strangers)}')
    if iou_type == 'segm' and not all('segmentation' in annotation for annotation in coco_gt.anns.values()):
        raise ValueError('the annotations have no masks')
    with contextlib.redirect_stdout(io.StringIO()):
        coco_eval = COCOeval(coco_gt, as_detections(coco_gt, predictions, iou_type), iou_type)
        coco_eval.params.catIds = coco_gt.getCatIds(catNms=list(classes or []))
        coco_eval.params.maxDets = list(proposal_nums)
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    summary = {metric: percent(value) for metric, value in zip(COCO_METRICS, coco_eval.stats)}
    return Evaluation(iou_type, summary, class_ap(coco_eval), coco_eval)


def as_detections(coco_gt, predictions, iou_type):
    """Return predictions as a COCO object. For masks, the box that was predicted with one is its 'predicted_bbox'."""
    if not predictions:  # loadRes takes no empty list
        empty = COCO()
        empty.dataset = dict(coco_gt.dataset, annotations=[])
        empty.createIndex()
        return empty
    # loadRes writes into what it is given. A 'bbox' would make it take the box's area for the mask's, which changes
    # APs, APm and APl of masks.
    renamed = {'bbox': 'predicted_bbox'} if iou_type == 'segm' else {}
    return coco_gt.loadRes(
        [{renamed.get(key, key): value for key, value in prediction.items()} for prediction in predictions]
    )


def class_ap(coco_eval):
    """Return AP in percent by class name (Series), NaN for classes without objects."""
    precision = coco_eval.eval['precision'][:, :, :, 0, -1]  # (IoU thresholds, recalls, classes), all sizes
    names = class_names(coco_eval)
    values = [precision[:, :, index] for index in range(len(names))]
    return pd.Series(
        [percent(value[value > -1].mean() if (value > -1).any() else -1) for value in values], names, dtype=float
    )


def class_names(coco_eval):
    """Return the names (list[str]) of the evaluated classes; those that several classes have get their ids."""
    categories = coco_eval.cocoGt.loadCats(coco_eval.params.catIds)
    names = [str(category['name']) for category in categories]
    return [
        name if names.count(name) == 1 else f'{name} (id {category["id"]})' for name, category in zip(names, categories)
    ]


def match_objects(coco_eval, score_thr):
    """Tell which predictions are right and which objects were found, at an IoU of 0.5.

    Args:
        coco_eval (COCOeval): Evaluated.
        score_thr (float): Predictions with a lower score do not count.

    Returns:
        DataFrame: Columns image_id, id (of the annotation) and outcome: 'hit' or 'false' for a prediction, 'found' or
        'missed' for an object. Crowd regions, and predictions on them, are left out.
    """
    rows = []
    scores = {id_: detection['score'] for id_, detection in coco_eval.cocoDt.anns.items()}
    all_sizes = coco_eval.params.areaRng[0]
    for entry in coco_eval.evalImgs:
        if entry is None or entry['aRng'] != all_sizes:
            continue
        for id_, object_id, ignored in zip(entry['dtIds'], entry['dtMatches'][0], entry['dtIgnore'][0]):
            if scores[id_] >= score_thr and not ignored:
                rows.append((entry['image_id'], id_, 'hit' if object_id else 'false'))
        for id_, detection_id, ignored in zip(entry['gtIds'], entry['gtMatches'][0], entry['gtIgnore']):
            if not ignored:
                found = detection_id and scores[detection_id] >= score_thr
                rows.append((entry['image_id'], id_, 'found' if found else 'missed'))
    return pd.DataFrame(rows, columns=['image_id', 'id', 'outcome'])
