"""What stands in for panopticapi, by itself and inside mmdet's metric."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mmnorm.openmmlab.panoptic import PQStat, id2rgb, rgb2id

CATEGORIES = {1: dict(isthing=1), 2: dict(isthing=1), 7: dict(isthing=0), 9: dict(isthing=0)}


def test_ids_and_colors():
    ids = np.array([[0, 255, 256], [65535, 65536, 256**3 - 1]])
    colors = id2rgb(ids)
    assert colors.dtype == np.uint8 and colors[1, 1].tolist() == [0, 0, 1] and colors[0, 2].tolist() == [0, 1, 0]
    assert np.array_equal(rgb2id(colors), ids)
    assert rgb2id([1, 2, 3]) == 1 + 2 * 256 + 3 * 65536


def test_quality_is_kirillovs_equation():
    first, second = PQStat(), PQStat()
    first[1].iou, first[1].tp, first[1].fp = 1.5, 2, 1
    second[1].fn = 2
    second[2].fp = 4
    second[7].iou, second[7].tp = 0.75, 1
    first += second
    everything, each = first.pq_average(CATEGORIES, isthing=None)
    assert each[1] == pytest.approx(dict(sq=1.5 / 2, rq=2 / (2 + 1.5), pq=1.5 / 3.5))
    assert each[2] == each[9] == dict(pq=0, sq=0, rq=0)
    # a category without segments (9) is no part of the average, one without matches (2) is
    assert everything == pytest.approx(
        dict(pq=(1.5 / 3.5 + 0 + 0.75) / 3, sq=(0.75 + 0 + 0.75) / 3, rq=(2 / 3.5 + 0 + 1) / 3, n=3)
    )
    things, stuff = (first.pq_average(CATEGORIES, isthing)[0] for isthing in (True, False))
    assert things == pytest.approx(dict(pq=1.5 / 3.5 / 2, sq=0.75 / 2, rq=1 / 3.5, n=2))
    assert stuff == dict(pq=0.75, sq=0.75, rq=1, n=1)
    assert PQStat().pq_average(CATEGORIES, None)[0] == dict(pq=0, sq=0, rq=0, n=0)


@pytest.mark.parametrize('own_files', [False, True])
def test_mmdets_metric(tmp_path, own_files):
    """A thing found with IoU 3/4, one taken for the other class, stuff with IoU 2/3; unlabeled pixels do not count."""
    from mmdet.evaluation import INSTANCE_OFFSET, CocoPanopticMetric

    truth = np.zeros((6, 6), int)
    truth[:2] = 301  # 12 pixels of stuff
    truth[2:4, :4], truth[4:, :4] = 302, 70303  # 8 pixels each
    Image.fromarray(id2rgb(truth)).save(tmp_path / '1.png')
    segments = [
        dict(id=i, category_id=category, area=area, bbox=[0, 0, 4, 2], iscrowd=0)
        for i, category, area in ((301, 3, 12), (302, 1, 8), (70303, 2, 8))
    ]
    (tmp_path / 'truth.json').write_text(
        json.dumps(
            dict(
                images=[dict(id=1, file_name='1.jpg', height=6, width=6)],
                annotations=[dict(image_id=1, file_name='1.png', segments_info=segments)],
                categories=[dict(id=i, name=f'c{i}', isthing=int(i < 3)) for i in (1, 2, 3)],
            )
        )
    )
    predicted = np.full((6, 6), 2)  # labels 0 and 1 are things, 2 is stuff, 3 is nothing
    predicted[0, 2:] = 3  # 4 of 12 pixels of stuff are missed
    predicted[2:4, :4], predicted[4:, :4] = INSTANCE_OFFSET, 2 * INSTANCE_OFFSET
    predicted[2, :2] = 3
    predicted[2:, 4:] = 2  # over unlabeled pixels

    prefix = str(tmp_path / 'own') if own_files else None
    metric = CocoPanopticMetric(
        ann_file=str(tmp_path / 'truth.json'), seg_prefix=str(tmp_path), outfile_prefix=prefix, nproc=1
    )
    metric.dataset_meta = dict(classes=('c1', 'c2', 'c3'), thing_classes=('c1', 'c2'), stuff_classes=('c3',))
    sample = dict(
        img_id=1, img_path='1.jpg', ori_shape=(6, 6), pred_panoptic_seg=dict(sem_seg=torch.from_numpy(predicted[None]))
    )
    metric.process({}, [sample])
    results = metric.evaluate(1)
    # c1: SQ 3/4, and RQ 2/3, because of the one in the place of c2; c2: nothing; c3: SQ 2/3, RQ 1
    expected = dict(
        PQ=(50 + 0 + 200 / 3) / 3,
        SQ=(75 + 0 + 200 / 3) / 3,
        RQ=(200 / 3 + 0 + 100) / 3,
        PQ_th=50 / 2,
        SQ_th=75 / 2,
        RQ_th=200 / 3 / 2,
        PQ_st=200 / 3,
        SQ_st=200 / 3,
        RQ_st=100,
    )
    for name, value in expected.items():
        assert results[f'coco_panoptic/{name}'] == pytest.approx(value), name


def run(code, **kwargs):
    done = subprocess.run(
        [sys.executable, '-c', code], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs
    )
    assert done.returncode == 0, done.stdout


def test_mmdet_finds_it_even_if_it_was_imported_first():
    run(
        'import mmdet.apis, mmdet.evaluation; import mmnorm\n'
        'from mmdet.datasets.transforms import LoadPanopticAnnotations\n'
        'LoadPanopticAnnotations(); mmdet.evaluation.CocoPanopticMetric()\n'
        'assert mmdet.evaluation.functional.panoptic_utils.PQStat and mmdet.apis.det_inferencer.id2rgb\n'
        'import panopticapi.utils; assert panopticapi.utils.rgb2id([1, 0, 0]) == 1'
    )


def test_an_installed_panopticapi_is_left_alone(tmp_path):
    (tmp_path / 'panopticapi').mkdir()
    for name in ('__init__', 'evaluation', 'utils'):
        (tmp_path / 'panopticapi' / f'{name}.py').write_text('OFFSET = VOID = PQStat = rgb2id = id2rgb = "theirs"')
    run(
        f'import sys; sys.path.insert(0, {str(tmp_path)!r}); import mmnorm\n'
        'from panopticapi.evaluation import PQStat; assert PQStat == "theirs"\n'
        'from mmdet.evaluation.functional import panoptic_utils; assert panoptic_utils.rgb2id == "theirs"'
    )
