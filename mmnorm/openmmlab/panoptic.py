"""What mmdet needs of panopticapi, which no package index carries: segment ids in a PNG, and sums of panoptic quality.

With it mmdet's own loader and metric (LoadPanopticAnnotations, CocoPanopticMetric), which match and count the segments,
work wherever mmnorm is imported. Where panopticapi is installed, that one is used and nothing of this.
"""

import sys
from collections import defaultdict
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

OFFSET = 256**3  # above every segment id
VOID = 0  # the segment id of unlabeled pixels


def rgb2id(color):
    """Segment ids (...) out of colors (..., 3), any integers: R + 256 G + 65536 B."""
    return np.asarray(color).astype(np.int64) @ (1, 256, 65536)


def id2rgb(id_map):
    """Colors (..., 3) uint8 of segment ids (...), any integers: what :func:`rgb2id` reads."""
    ids = np.asarray(id_map)
    return np.stack([ids >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)


@dataclass
class PQStatCat:
    """Segments of one category: matched ones (tp) with the sum of their IoUs, predicted (fp), true ones (fn) left."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __iadd__(self, other):
        self.iou, self.tp = self.iou + other.iou, self.tp + other.tp
        self.fp, self.fn = self.fp + other.fp, self.fn + other.fn
        return self

    def quality(self):
        """PQ = SQ x RQ (Kirillov et al., Panoptic Segmentation, CVPR 2019, eq. 1): dict(pq, sq, rq), each in 0..1."""
        segmentation = self.iou / self.tp if self.tp else 0.0
        recognition = self.tp / (self.tp + (self.fp + self.fn) / 2) if self.tp else 0.0
        return dict(pq=segmentation * recognition, sq=segmentation, rq=recognition)


class PQStat:
    """Sums of all categories: ``stat[category_id]`` is a :class:`PQStatCat`."""

    def __init__(self):
        self.pq_per_cat = defaultdict(PQStatCat)

    def __getitem__(self, category):
        return self.pq_per_cat[category]

    def __iadd__(self, other):
        for category, stat in other.pq_per_cat.items():
            self.pq_per_cat[category] += stat
        return self

    def pq_average(self, categories, isthing):
        """Average the quality over categories that have segments.

        Args:
            categories (dict[int, dict]): Of an annotation file, with ``isthing``.
            isthing (bool, optional): Things only, stuff only, or None for both.

        Returns:
            tuple: dict(pq, sq, rq, n), n categories having segments, each quality in 0..1 (0 if n = 0); and, for each
            category, its own dict(pq, sq, rq).
        """
        stats = {
            category: self.pq_per_cat.get(category, PQStatCat())
            for category, info in categories.items()
            if isthing is None or isthing == bool(info['isthing'])
        }
        each = {category: stat.quality() for category, stat in stats.items()}
        seen = [each[category] for category, stat in stats.items() if stat.tp + stat.fp + stat.fn]
        average = {name: sum(quality[name] for quality in seen) / max(len(seen), 1) for name in ('pq', 'sq', 'rq')}
        return dict(average, n=len(seen)), each


def install():
    """Be ``panopticapi`` for imports to come, and for mmdet's modules that looked for it earlier; once, if missing."""
    if 'panopticapi' in sys.modules or find_spec('panopticapi') is not None:
        return
    names = ('panopticapi', 'panopticapi.evaluation', 'panopticapi.utils')
    sys.modules.update(dict.fromkeys(names, sys.modules[__name__]))
    for name, module in list(sys.modules.items()):
        if name.startswith('mmdet.'):
            for wanted in {'panopticapi', 'PQStat', 'id2rgb', 'rgb2id', 'VOID'} & vars(module).keys():
                if vars(module)[wanted] is None:
                    setattr(module, wanted, globals()[wanted])


panopticapi = evaluation = utils = sys.modules[__name__]  # as they are imported: all three are this module
