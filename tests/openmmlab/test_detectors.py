"""Panoptic FPN that also gives instances: what it predicts, at what cost, and that both metrics read it."""

import copy
from collections import Counter

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from tests.conftest import ROOT

SIDE = 64


@pytest.fixture
def cfg():
    init_default_scope('mmdet')
    cfg = Config.fromfile(ROOT / 'configs/panoptic_fpn_rbn_r50_digits.py')
    cfg.model.test_cfg.panoptic.stuff_area_limit = 1
    return cfg


@pytest.fixture
def network(cfg):
    from mmdet.registry import MODELS

    torch.manual_seed(0)
    return MODELS.build(cfg.model).eval()


def batch(size=2):
    from mmdet.testing import demo_mm_inputs

    return demo_mm_inputs(size, [(3, SIDE, SIDE)] * size, num_classes=10, with_mask=True, with_semantic=True)


def instances(boxes, labels, scores):
    """Instances whose masks fill their boxes (x1, y1, x2, y2)."""
    masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[y1:y2, x1:x2] = True
    return InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.long),
        scores=torch.tensor(scores, dtype=torch.float),
        masks=masks,
    )


def segments(panoptic):
    """{(label, instance): pixels} of a panoptic map."""
    ids, counts = panoptic.sem_seg.unique(return_counts=True)
    return {(int(i) % 1000, int(i) // 1000): int(count) for i, count in zip(ids, counts)}


def test_instances_are_all_and_the_map_is_of_the_confident_ones(network, monkeypatch):
    found = instances(
        [(0, 0, 20, 20), (0, 0, 20, 18), (30, 30, 60, 60), (0, 40, 20, 60)], [3, 5, 7, 3], [0.9, 0.8, 0.7, 0.5]
    )
    nothing = instances([], [], [])
    monkeypatch.setattr(network.roi_head, 'predict', lambda *args, **kwargs: [found, nothing])
    # Stuff 0 ("temple") everywhere: logits of two kinds of stuff and of things
    maps = torch.tensor([1.0, 0, 0])[:, None, None].expand(3, SIDE, SIDE)
    monkeypatch.setattr(network.semantic_head, 'predict', lambda *args, **kwargs: [maps, maps])
    with torch.no_grad():
        one, two = network.test_step(batch())
    assert one.pred_instances is found and two.pred_instances is nothing
    # The 5 lies over the 3 (NMS over all classes), the other 3 is not confident enough (0.5 < 0.6)
    assert segments(one.pred_panoptic_seg) == {(3, 1): 400, (7, 2): 900, (10, 0): SIDE**2 - 1300}
    assert segments(two.pred_panoptic_seg) == {(10, 0): SIDE**2}

    del network.test_cfg.panoptic['score_thr'], network.test_cfg.panoptic['nms']
    with torch.no_grad():
        one, _ = network.test_step(batch())
    # as mmdet's own: masks of which half is covered are left out, nothing else
    assert segments(one.pred_panoptic_seg) == {(3, 1): 400, (7, 2): 900, (3, 3): 400, (10, 0): SIDE**2 - 1700}


def test_every_part_runs_once(network):
    calls = Counter()
    for name in ('backbone', 'neck', 'rpn_head', 'roi_head.bbox_head', 'roi_head.mask_head', 'semantic_head'):
        module = network.get_submodule(name)

        def counted(*args, forward=module.forward, name=name):
            calls[name] += 1
            return forward(*args)

        module.forward = counted
    with torch.no_grad():
        samples = network.test_step(batch())
    assert all(len(sample.pred_instances) for sample in samples)
    assert set(calls.values()) == {1} and len(calls) == 6


def test_the_map_is_mmdets(cfg, network):
    """Under the same thresholds, mmdet's own detector makes the same map of the same weights."""
    from mmdet.registry import MODELS

    for settings in (cfg.model.test_cfg.rcnn, cfg.model.test_cfg.panoptic):
        settings.update(score_thr=0.1, nms=dict(type='nms', iou_threshold=0.5))  # classes apart: the same twice over
    ours = MODELS.build(cfg.model).eval()
    theirs = MODELS.build(dict(cfg.model, type='PanopticFPN')).eval()
    for model in (ours, theirs):
        model.load_state_dict(network.state_dict())
    with torch.no_grad():
        for one, other in zip(ours.test_step(batch()), theirs.test_step(batch())):
            assert 'pred_instances' not in other
            assert torch.equal(one.pred_panoptic_seg.sem_seg, other.pred_panoptic_seg.sem_seg)


def test_both_metrics_in_one_evaluation(digits, cfg, network, monkeypatch):
    """The ground truth as prediction is perfect in both."""
    from mmdet.registry import DATASETS

    root = str(digits / 'coco') + '/'
    cfg.val_dataloader.dataset.data_root = root
    panoptic, coco = cfg.val_evaluator
    segments = root + 'annotations/panoptic_val2017'
    panoptic.update(ann_file=segments + '.json', seg_prefix=segments)
    coco.ann_file = root + 'annotations/instances_val2017.json'
    cfg.val_dataloader.dataset.pipeline[2].scale = (SIDE, SIDE)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    evaluator = Evaluator(copy.deepcopy(list(cfg.val_evaluator)))
    evaluator.dataset_meta = dataset.metainfo
    for data in dataset:
        truth = data['data_samples']
        found = InstanceData(
            bboxes=truth.gt_instances.bboxes.tensor,
            labels=truth.gt_instances.labels,
            scores=torch.ones(len(truth.gt_instances)),
            masks=torch.from_numpy(truth.gt_instances.masks.masks).bool(),
        )
        semantic = torch.stack([truth.gt_sem_seg.sem_seg[0] == label for label in (10, 11)]).float()
        maps = torch.cat([semantic, torch.full((1, SIDE, SIDE), 0.5)])  # the third: things, and unlabeled
        monkeypatch.setattr(network.roi_head, 'predict', lambda *args, found=found, **kwargs: [found])
        monkeypatch.setattr(network.semantic_head, 'predict', lambda *args, maps=maps, **kwargs: [maps])
        with torch.no_grad():
            evaluator.process(network.test_step(dict(inputs=[data['inputs']], data_samples=[data['data_samples']])))
    metrics = evaluator.evaluate(len(dataset))
    assert metrics['coco_panoptic/PQ'] == metrics['coco_panoptic/SQ_st'] == pytest.approx(100)
    assert metrics['coco/bbox_mAP'] == metrics['coco/segm_mAP'] == pytest.approx(1)
