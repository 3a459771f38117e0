"""Metrics over other choices of the same test images: how far a figure, or a gain, depends on which images they are.

mmdet's box and mask AP (CocoMetric) and PQ, and mmseg's mIoU, keep by image what they are made of. From it a metric is
computed again for any number of resamplings (bootstrap) without another evaluation.
"""

from contextlib import ExitStack, contextmanager

import numpy as np

#: Numbers of a chunk of work, so that memory stays below about 100 MB.
_CHUNK = 2**22


class AveragePrecision:
    """COCO's AP, in percent, of an evaluation by pycocotools.

    Args:
        coco_eval (COCOeval): Evaluated; nothing of it is kept but what was matched.
    """

    def __init__(self, coco_eval):
        params, images = coco_eval.params, len(coco_eval.params.imgIds)
        self.images, self.recalls = images, np.asarray(params.recThrs)
        self.categories = []
        stride = images * len(params.areaRng)  # areas: all, small, medium, large
        for start in range(0, stride * len(params.catIds), stride):
            entries = [(i, one) for i, one in enumerate(coco_eval.evalImgs[start : start + images]) if one is not None]
            objects = np.zeros(images)
            for i, one in entries:
                objects[i] = np.count_nonzero(~np.asarray(one['gtIgnore'], bool))
            if objects.any():
                self.categories.append((objects, *self._detections(entries, max(1, len(params.iouThrs)))))

    @staticmethod
    def _detections(entries, thresholds):
        """By falling score: image of each detection (D,), hits and those that count (thresholds, D)."""
        best = 100  # detections of an image, as in COCO's AP
        scores = np.concatenate([one['dtScores'][:best] for _, one in entries])
        order = np.argsort(-scores, kind='mergesort')  # as pycocotools sorts
        image = np.concatenate([np.full(len(one['dtScores'][:best]), i) for i, one in entries])[order]
        matched, ignored = (
            np.concatenate([np.asarray(one[key], bool)[:, :best] for _, one in entries], 1).reshape(thresholds, -1)[
                :, order
            ]
            for key in ('dtMatches', 'dtIgnore')
        )
        return image.astype(int), matched & ~ignored, ~ignored

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
                reached = np.searchsorted(self.recalls, right / number[chunk, None], side='right')
                found[chunk] += (precision * np.diff(reached, axis=1, prepend=0)).sum(1)
        return found / len(self.recalls) / len(hit)


class MeanOfRatios:
    """A mean over classes of ratios of sums over images, in percent: mIoU, and PQ.

    Args:
        above, below (array): (images, classes).
        nan_to_num (float or None): What a class counts for that does not occur. Default: it is left out.
    """

    def __init__(self, above, below, nan_to_num=None):
        self.above, self.below = np.asarray(above, float), np.asarray(below, float)
        self.images, self.absent = len(self.above), np.nan if nan_to_num is None else nan_to_num

    def resampled(self, counts):
        """As that of :class:`AveragePrecision`."""
        above, below = counts @ self.above, counts @ self.below
        ratios = np.where(below > 0, above / below.clip(min=1e-12), self.absent)
        known = ~np.isnan(ratios)
        with np.errstate(invalid='ignore'):
            return 100 * np.where(known, ratios, 0).sum(1) / known.sum(1)


@contextmanager
def recorded(metrics):
    """Have metrics keep what they are made of, by image, while they are computed.

    Args:
        metrics (list[BaseMetric]): Of an evaluator.

    Yields:
        dict[str, AveragePrecision or MeanOfRatios]: Filled when the metrics are computed, on the first rank: key of the
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

    def compute_and_keep(results):
        with _kept_evaluations(getattr(compute, '__globals__', {})) as evaluations:  # of the method's module
            values = compute(results)
        kept = {
            f'{one.params.iouType}_mAP': AveragePrecision(one)
            for one in evaluations
            if one.params.useCats and one.params.iouType in ('bbox', 'segm')
        }
        if results and 'mIoU' in values and isinstance(results[0], tuple) and len(results[0]) == 4:
            intersect, union = (np.stack([np.asarray(of_image[i]) for of_image in results]) for i in (0, 1))
            kept['mIoU'] = MeanOfRatios(intersect, union, getattr(metric, 'nan_to_num', None))
        if results and 'PQ' in values and hasattr(results[0], 'pq_per_cat'):
            kept['PQ'] = _panoptic_quality(results, metric.categories)
        found.update({f'{metric.prefix}/{key}' if metric.prefix else key: kept[key] for key in kept if key in values})
        return values

    metric.compute_metrics = compute_and_keep
    try:
        yield
    finally:
        del metric.compute_metrics  # that of the class is there again


@contextmanager
def _kept_evaluations(names):
    """A list of the evaluations that code with these global names makes by pycocotools in the block."""
    evaluations = []
    if 'COCOeval' not in names:
        yield evaluations
        return
    of_host = names['COCOeval']

    class Kept(of_host):
        def summarize(self):
            super().summarize()
            evaluations.append(self)

    names['COCOeval'] = Kept
    try:
        yield evaluations
    finally:
        names['COCOeval'] = of_host


def _panoptic_quality(results, categories):
    """PQ by image of mmdet's statistics (list of PQStat), over the ids (dict) of its categories."""
    parts = [[of_image.pq_per_cat[id_] for id_ in categories] for of_image in results]
    above = [[part.iou for part in of_image] for of_image in parts]
    return MeanOfRatios(above, [[part.tp + 0.5 * part.fp + 0.5 * part.fn for part in of_image] for of_image in parts])


def choices(images, number, seed=0):
    """How often each image is taken when as many images are drawn with replacement, (number, images) int."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), number)


def resample(metric, number, seed=0):
    """A metric of all images, and of as many images drawn from them, again and again.

    Args:
        metric (AveragePrecision or MeanOfRatios): Which metric.
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
