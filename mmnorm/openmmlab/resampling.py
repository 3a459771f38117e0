"""Metrics over other choices of the same test images: how far a figure, or a gain, depends on which images they are.

mmdet's AP of boxes and masks (CocoMetric, LVISMetric), mAP (VOCMetric) and PQ, what mmseg's IoUMetric gives, and
mmpretrain's Accuracy are made of parts that are kept by image. From them a metric is computed again for any number of
resamplings (bootstrap) without another evaluation.
"""

import re
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

#: Numbers of a chunk of work, so that memory stays below about 100 MB.
_CHUNK = 2**22


class AveragePrecision:
    """Precision of detectors, its mean over categories, IoU thresholds and recalls, in percent.

    Args:
        images (int): How many there are.
        categories (iterable): For each category a list with a tuple for each image that has objects or detections of
            it: number of the image, number of objects that count, and of its detections (D) the scores, (D,), and
            whether they hit an object, and whether they count, (thresholds, D) each.
        recalls (array or None): At which precision is taken. Default: all, so that AP is the area below the curve.
    """

    def __init__(self, images, categories, recalls=None):
        self.images, self.recalls, self.categories = images, recalls, []
        for entries in categories:
            objects = np.zeros(images)
            for image, number, *_ in entries:
                objects[image] = number
            if objects.any():
                self.categories.append((objects, *self._by_score(entries)))

    @staticmethod
    def _by_score(entries):
        """By falling score: image of each detection (D,), hits and those that count (thresholds, D)."""
        numbers, _, scores, hits, counted = zip(*entries)
        order = np.argsort(-np.concatenate(scores), kind='mergesort')  # as pycocotools sorts
        image = np.repeat(numbers, [len(of_image) for of_image in scores])[order]
        return image, np.concatenate(hits, 1)[:, order], np.concatenate(counted, 1)[:, order]

    def resampled(self, counts):
        """The metric, (B,), of images taken ``counts`` (B, images) times; NaN where no object is among them."""
        total, categories = np.zeros(len(counts)), np.zeros(len(counts))
        for objects, *detections in self.categories:
            number = counts @ objects
            total += np.where(number > 0, self._precision(counts, number.clip(min=1), *detections), 0)
            categories += number > 0
        with np.errstate(invalid='ignore'):
            return 100 * total / categories

    def _precision(self, counts, number, image, hit, counted):
        """Mean precision over recalls and IoU thresholds, (B,)."""
        found = np.zeros(len(counts))
        rows = max(1, _CHUNK // max(1, len(image)))
        for start in range(0, len(counts), rows):
            chunk = slice(start, start + rows)
            times = counts[chunk][:, image].astype(np.float64)
            seen_at = np.cumsum(times, 1)
            for hits, counts_here in zip(hit, counted):
                at = np.flatnonzero(hits)  # precision is highest at hits, and recall grows there alone
                if not len(at):
                    continue
                seen, left_out = seen_at[:, at], np.flatnonzero(~counts_here)
                if len(left_out):
                    before = np.cumsum(np.pad(times[:, left_out], ((0, 0), (1, 0))), 1)
                    seen = seen - before[:, np.searchsorted(left_out, at)]
                right = np.cumsum(times[:, at], 1)
                precision = np.maximum.accumulate((right / seen.clip(min=1))[:, ::-1], 1)[:, ::-1]
                recall = right / number[chunk, None]
                if self.recalls is not None:  # how many of them are reached
                    recall = np.searchsorted(self.recalls, recall, side='right') / len(self.recalls)
                found[chunk] += (precision * np.diff(recall, axis=1, prepend=0)).sum(1)
        return found / len(hit)


class FigureOfSums:
    """A metric that is a function of sums over images: PQ, accuracy, and those of mmseg's IoUMetric.

    Args:
        parts (array): What is summed, (images, ...).
        figure (callable): Gives the metric, in percent, by the sums (...).
    """

    def __init__(self, parts, figure):
        self.parts, self.figure = np.asarray(parts, float), figure
        self.images = len(self.parts)

    def resampled(self, counts):
        """As that of :class:`AveragePrecision`."""
        return np.array([self.figure(sums) for sums in np.tensordot(counts, self.parts, 1)])


@contextmanager
def recorded(metrics):
    """Have metrics keep what they are made of, by image, while they are computed.

    Args:
        metrics (list[BaseMetric]): Of an evaluator.

    Yields:
        dict[str, AveragePrecision or FigureOfSums]: Filled when the metrics are computed, on the first rank: key of the
        metric, as the evaluator has it, to what resamples it. Other metrics are left out.
    """
    found = {}
    with ExitStack() as stack:
        for metric in metrics:
            stack.enter_context(_recorded(metric, found))
        yield found


@contextmanager
def _recorded(metric, found):
    compute = metric.compute_metrics

    names = getattr(compute, '__globals__', {})  # of the method's module

    def compute_and_keep(results):
        with _kept_evaluations(names) as evaluations:
            values = compute(results)
        kept = {key: one for evaluation in evaluations for key, one in of_coco(evaluation).items()}
        if results and 'mAP' in values and 'eval_map' in names and hasattr(metric, 'eval_mode'):
            kept['mAP'] = _of_voc(metric, results)
        if results and 'aAcc' in values and hasattr(metric, 'total_area_to_metrics'):
            kept |= _of_areas(metric, results, values)
        if results and hasattr(metric, 'topk') and isinstance(results[0], dict) and 'gt_label' in results[0]:
            kept |= _of_labels(compute, results, values)
        if results and 'PQ' in values and hasattr(results[0], 'pq_per_cat'):
            kept['PQ'] = _of_segments(metric.categories, results)
        found.update({f'{metric.prefix}/{key}' if metric.prefix else key: kept[key] for key in kept if key in values})
        return values

    metric.compute_metrics = compute_and_keep
    try:
        yield
    finally:
        del metric.compute_metrics  # that of the class is there again


@contextmanager
def _kept_evaluations(names):
    """A list of the evaluations (COCOeval, LVISEval) that code with these global names makes in the block."""
    evaluations = []
    name = next((name for name in ('COCOeval', 'LVISEval') if names.get(name)), None)
    if name is None:
        yield evaluations
        return
    of_host = names[name]

    class Kept(of_host):
        def summarize(self):
            super().summarize()
            evaluations.append(self)

    names[name] = Kept
    try:
        yield evaluations
    finally:
        names[name] = of_host


def of_coco(evaluation):
    """What resamples AP of boxes or masks.

    Args:
        evaluation (COCOeval or LVISEval): Evaluated; nothing of it is kept but what was matched.

    Returns:
        dict[str, AveragePrecision]: By the keys of mmdet's metrics; of proposals and key points empty.
    """

    def get(of, name):  # LVIS has the same under names with underscores
        values = of if isinstance(of, dict) else vars(of)
        return values[name] if name in values else values[re.sub('[A-Z]', r'_\g<0>', name).lower()]

    params, evaluated = get(evaluation, 'params'), get(evaluation, 'evalImgs')
    kind, images = get(params, 'iouType'), len(get(params, 'imgIds'))
    if not get(params, 'useCats') or kind not in ('bbox', 'segm'):
        return {}
    best = 100 if hasattr(evaluation, 'evalImgs') else None  # detections of an image: COCO's AP has fewer than are kept

    def of_image(image, one):
        matched, ignored = (np.asarray(get(one, key), bool)[:, :best] for key in ('dtMatches', 'dtIgnore'))
        objects = np.count_nonzero(~np.asarray(get(one, 'gtIgnore'), bool))
        return image, objects, get(one, 'dtScores')[:best], matched & ~ignored, ~ignored

    stride = images * len(get(params, 'areaRng'))  # areas: all, small, medium, large
    categories = (
        [of_image(i, one) for i, one in enumerate(evaluated[start : start + images]) if one is not None]
        for start in range(0, len(evaluated), stride)
    )
    kept = AveragePrecision(images, categories, np.asarray(get(params, 'recThrs')))
    return {f'{kind}_mAP': kept, f'{kind}_AP': kept}  # as COCO's and LVIS's metric call it


def _of_voc(metric, results):
    """mAP of mmdet's VOCMetric: its results, annotations and detections by label of each image, matched as it does."""
    from mmdet.evaluation.functional.mean_ap import get_cls_results, tpfp_default

    def of_image(image, found, objects, ignored):
        matched = (tpfp_default(found, objects, ignored, iou, use_legacy_coordinate=True) for iou in metric.iou_thrs)
        hits, misses = (np.concatenate(of_thresholds) > 0 for of_thresholds in zip(*matched))
        return image, len(objects), found[:, -1], hits, hits | misses

    annotations, detections = zip(*results)
    categories = (
        [of_image(i, *one) for i, one in enumerate(zip(*get_cls_results(detections, annotations, label)))]
        for label in range(len(detections[0]))
    )
    recalls = np.linspace(0, 1, 11) if metric.eval_mode == '11points' else None
    return AveragePrecision(len(results), categories, recalls)


def _of_areas(metric, results, keys):
    """Metrics of mmseg's IoUMetric, by key: of its results, areas by class of each image, its own function."""
    areas = np.stack([torch.stack(of_image).numpy() for of_image in results])

    def of_key(key):
        name = key if key == 'aAcc' else key[1:]  # mIoU is the mean of IoU

        def figure(sums):
            sums = torch.from_numpy(sums)
            figures = metric.total_area_to_metrics(*sums, metric.metrics, metric.nan_to_num, metric.beta)
            return 100 * np.nanmean(figures[name])

        return FigureOfSums(areas, figure)

    return {key: of_key(key) for key in keys}


def _of_labels(compute, results, keys):
    """Accuracies of mmpretrain's, by key: of its results, what its own function gives for each image alone."""
    of_images = [compute([result]) for result in results]
    return {key: FigureOfSums([[of_image[key], 1] for of_image in of_images], lambda s: s[0] / s[1]) for key in keys}


def _of_segments(categories, results):
    """PQ of mmdet's statistics (list of PQStat) over the ids (dict) of its categories."""

    def figure(sums):
        iou, tp, fp, fn = sums
        number = tp + (fp + fn) / 2
        seen = number > 0
        return 100 * np.mean(iou[seen] / number[seen]) if seen.any() else np.nan

    return FigureOfSums(
        [
            [[getattr(of_image.pq_per_cat[id_], part) for id_ in categories] for part in ('iou', 'tp', 'fp', 'fn')]
            for of_image in results
        ],
        figure,
    )


def choices(images, number, seed=0):
    """How often each image is taken when as many images are drawn with replacement, (number, images) int."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), number)


def resample(metric, number, seed=0):
    """A metric of all images, and of as many images drawn from them, again and again.

    Args:
        metric (AveragePrecision or FigureOfSums): Which metric.
        number (int): How often.
        seed (int): By which the same images are drawn for every network.

    Returns:
        tuple[float, array]: In percent: of all images, and (number,) of those drawn.
    """
    of_all = metric.resampled(np.ones((1, metric.images)))
    return float(of_all[0]), metric.resampled(choices(metric.images, number, seed))


def gain_error(before, after):
    """Standard error of the difference of two networks, by a metric of both on the same resampled images, (number,)."""
    return float(np.nanstd(after - before, ddof=1))
