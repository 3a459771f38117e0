"""The check of data sets before a run: what is wrong with a file is told in words, with its name, ids and counts."""

import argparse
import copy
import json
import re
import sys
import time
from unittest import mock

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config
from PIL import Image

from mmnorm import cli
from mmnorm.cli.arguments import add_run_arguments
from mmnorm.engine import check_data as module
from mmnorm.engine.check_data import cache_folder, check_data, lines
from mmnorm.engine.coco_file import check_coco
from mmnorm.engine.config import load_config
from mmnorm.engine.findings import ERROR, WARNING
from tests.processes import ROOT

POLYGON = [10, 10, 30, 10, 30, 40]
CLASSES = ('cat', 'dog')


def annotation(number, image=1, category=1, bbox=(10, 10, 20, 30), **more):
    entry = dict(id=number, image_id=image, category_id=category, bbox=[*bbox], area=600, iscrowd=0)
    return dict(entry, segmentation=[[*POLYGON]], **more)


def good_content():
    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=100, height=80) for i in (1, 2, 3)],
        annotations=[annotation(1), annotation(2, 2, 2), annotation(3, 3)],
        categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
    )


def config(folder, file='train.json', kind='CocoDataset', with_mask=True, **dataset):
    loading = [dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask)]
    dataset = dict(type=kind, data_root=str(folder), ann_file=file, pipeline=loading, **dataset)
    dataset = dict(dict(data_prefix=dict(img='images/'), metainfo=dict(classes=CLASSES)), **dataset)
    return Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=dataset)))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'images').mkdir()
    for i in (1, 2, 3):
        (tmp_path / f'images/{i}.jpg').touch()
    return tmp_path


def found_in(folder, content, **options):
    """Errors and warnings of a file (lists of str), with orjson or not, by what it holds: an object, or its text."""
    path = folder / 'train.json'
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    checks = check_data(config(folder, **options), ('train',))
    with mock.patch.dict(sys.modules, orjson=None):
        assert check_data(config(folder, **options), ('train',)) == checks
    errors, warnings = lines(checks, ERROR), lines(checks, WARNING)
    for line in errors + warnings:
        assert line.startswith(str(folder)) and '\n' not in line and 'Traceback' not in line
    return [line.partition(': ')[2] for line in errors], [line.partition(': ')[2] for line in warnings]


def first(key, **values):
    """Set values of the first entry of a list; None takes one away."""

    def change(content):
        for name, value in values.items():
            content[key][0].pop(name, None)
            if value is not None:
                content[key][0][name] = value

    return change


def box(*values):
    return first('annotations', bbox=[*values])


def mask(value):
    return first('annotations', segmentation=value)


def replace(**values):
    return lambda content: content.update(values)


def without(*keys):
    return lambda content: [content.pop(key) for key in keys]


# What is done to a good file, and how the one finding starts; of these, each is an error ...
ERRORS = [
    (without('images'), "the key 'images' is missing"),
    (without('annotations'), "the key 'annotations' is missing"),
    (without('categories'), "the key 'categories' is missing"),
    (replace(images={}), "the key 'images' is a dict, not a list"),
    (replace(annotations='none'), "the key 'annotations' is a str, not a list"),
    (replace(images=[]), "'images' is empty"),
    (replace(annotations=[]), 'there are no objects'),
    (replace(categories=[]), "'categories' is empty"),
    (lambda content: content['annotations'].append(7), "entries of 'annotations' that are no objects: 1 (annotations["),
    (first('images', id=None), "images without 'id': 1 (number 1)"),
    (first('images', id=[1]), 'images whose id is neither a whole number nor a text: 1 ([1])'),
    (first('images', id=2), 'ids that several images have: 1 (id 2)'),
    (first('images', file_name=None), "images without 'file_name': 1 (image 1)"),
    (first('images', file_name=5), "images without 'file_name': 1 (image 1)"),
    (first('images', file_name='away.jpg'), 'images that are not in {folder}/images/: 1 ({folder}/images/away.jpg)'),
    (first('images', width=None), "images whose 'width' or 'height' is missing or no number of pixels: 1 (image 1: [n"),
    (first('images', height='80'), "images whose 'width' or 'height' is missing or no number of pixels: 1 (image 1"),
    (first('images', height=0), "images whose 'width' or 'height' is missing or no number of pixels: 1 (image 1"),
    (first('categories', id=None), "categories without 'id': 1"),
    (first('categories', id=2), 'ids that several categories have: 1 (id 2)'),
    (first('categories', name=None), "categories without 'name': 1 (category 1)"),
    (first('categories', name='dog'), "names that several categories have, so that labels shift: 1 ('dog')"),
    (first('categories', name='Cat'), 'classes of the config that are none of its categories, so that labels of the o'),
    (replace(categories=[dict(id=1, name='a'), dict(id=2, name='b')]), 'none of its 2 categories (a, b) is one of the'),
    (first('annotations', id=None), "annotations without 'id': 1 (number 1)"),
    (first('annotations', id=2), 'ids that several annotations have: 1 (id 2)'),
    (first('annotations', image_id=None), "annotations without 'image_id': 1 (annotation 1)"),
    (first('annotations', image_id=9), "annotations whose image_id is not among 'images': they would not be seen: 1 ("),
    (first('annotations', image_id='1'), "annotations whose image_id is not among 'images'"),
    (first('annotations', image_id={}), "annotations whose image_id is not among 'images'"),
    (first('annotations', category_id=None), "annotations without 'category_id': 1 (annotation 1)"),
    (first('annotations', category_id=0), "annotations whose category_id is not among 'categories'"),
    (first('annotations', area=None), "annotations without 'area': 1 (annotation 1)"),
    (first('annotations', area='600'), 'annotations whose area is no number: 1 (annotation 1: "600")'),
    (first('annotations', area=float('nan')), 'annotations whose area is NaN or infinite: 1 (annotation 1: NaN)'),
    (first('annotations', bbox=None), "annotations without 'bbox': 1 (annotation 1)"),
    (first('annotations', bbox={}), 'annotations whose bbox is not a list of four numbers: 1 (annotation 1: {{}})'),
    (box(1, 2, 3), 'annotations whose bbox is not a list of four numbers: 1 (annotation 1: [1, 2, 3])'),
    (box(1, 2, 3, '4'), 'annotations whose bbox is not a list of four numbers: 1'),
    (box(1, 2, 3, None), 'annotations whose bbox is not a list of four numbers: 1'),
    (box(float('nan'), 2, 3, 4), 'annotations whose bbox has a NaN or an infinite number: 1 (annotation 1: [NaN'),
    (box(1, 2, float('inf'), 4), 'annotations whose bbox has a NaN or an infinite number: 1'),
    (box(1, 2, 10**400, 4), 'annotations whose bbox has a NaN or an infinite number: 1'),
    (box(50, 50, -20, 10), 'annotations whose bbox (x, y, width, height) has a negative width or height: 1 (annotatio'),
    (box(1, 2, 1e9, 4), 'annotations whose bbox is far outside its image: 1 (annotation 1: [1, 2, 1000000000.0, 4])'),
    (box(-1e9, 2, 20, 4), 'annotations whose bbox is far outside its image: 1'),
    (mask(None), "annotations without 'segmentation': 1 (annotation 1)"),
    (mask([]), "annotations without 'segmentation': 1 (annotation 1)"),
    (mask(5), 'annotations whose segmentation is neither a list of polygons nor run lengths'),
    (mask(POLYGON), 'annotations without a polygon of three points or more, of finite numbers, two for each: 1 (annot'),
    (mask([POLYGON[:4]]), 'annotations without a polygon of three points or more'),
    (mask([POLYGON + [1]]), 'annotations without a polygon of three points or more'),
    (mask([POLYGON[:5] + ['40']]), 'annotations without a polygon of three points or more'),
    (mask([POLYGON[:5] + [float('nan')]]), 'annotations without a polygon of three points or more'),
    (mask([POLYGON[:5] + [1e9]]), 'annotations with a polygon far outside its image: 1 (annotation 1)'),
    (mask(dict(size=[100, 80], counts='abc')), "annotations whose run lengths are of another size than the image's [h"),
    (mask(dict(counts='abc')), "annotations whose run lengths are of another size than the image's [height, width]: 1"),
    (mask(dict(size=[80, 100])), 'annotations whose segmentation is neither a list of polygons nor run lengths'),
    (mask(dict(size=[80, 100], counts=[10, 20])), "annotations whose run lengths do not add up to the image's pixels:"),
]  # fmt: skip
# ... and of these a warning
WARNINGS = [
    (box(1, 2, 0, 4), 'annotations whose bbox is less than a pixel wide or high: mmdet leaves them out without a word'),
    (box(120, 2, 30, 4), 'annotations whose bbox is outside its image: mmdet leaves them out without a word: 1'),
    (box(90, 2, 30, 4), 'annotations whose bbox reaches out of its image by more than a pixel. They are many: does it'),
    (first('annotations', area=0), 'annotations whose area is 0 or less: mmdet leaves them out without a word: 1 (ann'),
    (mask([POLYGON, POLYGON[:4]]), 'annotations with polygons that are not of three points or more'),
    (lambda content: content['annotations'].pop(0), 'images without an object: 1 (image 1)'),
    (lambda content: content['annotations'].pop(1), "classes without an object: 1 ('dog')"),
    (lambda content: content['categories'].reverse(), 'its categories are in another order than the classes of the co'),
    (lambda content: content['categories'].append(dict(id=3, name='cow')), 'categories that are no class of the confi'),
    (first('images', file_name='2.jpg'), 'files that several images have: 1 ("2.jpg")'),
]  # fmt: skip


def test_a_good_file_has_nothing(folder):
    assert found_in(folder, good_content()) == ([], [])
    crowd = good_content()
    crowd['annotations'][0].update(iscrowd=1, segmentation=dict(size=[80, 100], counts=[100, 20, 7880]))
    crowd['annotations'][1].update(segmentation=dict(size=[80, 100], counts='compressed'))
    crowd['annotations'][2].update(bbox=[-0.5, 0, 100.7, 80.2], area=600.5)  # as roundings leave it
    assert found_in(folder, crowd) == ([], [])


def test_orjson_reads_what_is_right(folder, monkeypatch):
    orjson = pytest.importorskip('orjson')
    content = good_content()
    content['annotations'][0]['id'] = 2**64  # of which it makes a float
    assert found_in(folder, content) == ([], [])
    monkeypatch.setattr('mmnorm.engine.coco_file.json.loads', None)
    assert check_coco(orjson.dumps(good_content()))['findings'] == []
    box(1, 2, 30, 4)(content := good_content())
    first('annotations', iscrowd=None, segmentation=None)(content)  # which not everyone needs: no second look
    assert len(check_coco(orjson.dumps(content))['findings']) == 2


@pytest.mark.parametrize('change, message', ERRORS, ids=lambda value: value[:60] if isinstance(value, str) else None)
def test_errors_of_a_file(folder, change, message):
    content = good_content()
    change(content)
    errors, _ = found_in(folder, content)
    assert any(line.startswith(message.format(folder=folder)) for line in errors), errors


@pytest.mark.parametrize('change, message', WARNINGS, ids=lambda value: value[:60] if isinstance(value, str) else None)
def test_warnings_of_a_file(folder, change, message):
    content = good_content()
    change(content)
    errors, warnings = found_in(folder, content)
    assert not errors and any(line.startswith(message) for line in warnings), warnings


@pytest.mark.parametrize(
    'text, message',
    [
        (b'', 'this is not JSON: Expecting value at line 1, column 1'),
        (
            b'{"images": [',
            'this is not JSON: Expecting value at line 1, column 13, which is its end: the file is cut off',
        ),
        (b'{\n "images": [],}', 'this is not JSON: Expecting property name enclosed in double quotes at line 2'),
        (b'\xef\xbb\xbf{}', 'this is not JSON: Unexpected UTF-8 BOM'),
        (b'\xff\xd8\xff', 'this is not text in UTF-8: invalid start byte at byte 0'),
        (b'[' * 100_000, 'this is no annotation file: its JSON is nested too deeply'),
        (b'[' + b'9' * 5000 + b']', 'this JSON cannot be read: Exceeds the limit'),
        (b'[{"image_id": 1, "score": 1}]', "this is no annotation file: at its top is a list, not COCO's object"),
        (b'{"metainfo": {}, "data_list": []}', "the key 'images' is missing"),
    ],
)
def test_text_that_is_no_annotation_file(folder, text, message):
    errors, _ = found_in(folder, text)
    assert errors and errors[0].startswith(message), errors


def test_examples_are_few_and_the_count_is_whole(folder):
    content = good_content()
    content['annotations'] = [annotation(i, bbox=(1, 2, -5, 5)) for i in range(1200)]
    assert [line for line in found_in(folder, content)[0] if 'negative' in line] == [
        'annotations whose bbox (x, y, width, height) has a negative width or height: 1,200 '
        '(annotation 0: [1, 2, -5, 5], annotation 1: [1, 2, -5, 5], annotation 2: [1, 2, -5, 5], ...)'
    ]


@pytest.mark.parametrize('seed', range(3))
def test_any_value_anywhere_is_told_and_no_crash(folder, seed):
    """Every value of a good file replaced by others: what the check says is a list of lines whatever it meets."""
    rng = np.random.default_rng(seed)
    others = [
        None,
        True,
        -1,
        1.5,
        1e300,
        '',
        'x',
        [],
        [[]],
        {},
        [None],
        float('nan'),
        10**400,
        [1, [2]],
        {'a': 1},
        2**64,
    ]

    def places(tree):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield tree, key
            if isinstance(value, (dict, list)):
                yield from places(value)

    for layout, good in (('coco', good_content), ('lvis', good_content), ('panoptic', panoptic_content)):
        for number in range(len([*places(good())])):
            content = good()
            tree, key = [*places(content)][number]
            tree[key] = others[rng.integers(len(others))]
            text = json.dumps(content).encode()
            found = check_coco(text, layout)
            assert json.dumps(found)
            with mock.patch.dict(sys.modules, orjson=None):
                assert check_coco(text, layout) == found


def test_masks_and_labels_concern_those_who_read_them(folder):
    content = good_content()
    mask(None)(content)
    assert found_in(folder, content, with_mask=False) == ([], [])
    first('annotations', iscrowd=None)(content)
    path = folder / 'train.json'
    path.write_text(json.dumps(content))
    cfg = config(folder)
    cfg.val_dataloader = copy.deepcopy(cfg.train_dataloader)
    cfg.val_dataloader.dataset.pipeline = []
    cfg.val_evaluator = dict(type='CocoMetric', metric='bbox', ann_file=str(path))
    (error,) = lines(check_data(cfg, ('val',)), ERROR)
    assert error.endswith("annotations without 'iscrowd', which COCO's evaluation reads: 1 (annotation 1)")
    cfg.val_evaluator.metric = ['bbox', 'segm']
    assert any("without 'segmentation'" in line for line in lines(check_data(cfg, ('val',)), ERROR))
    del content['annotations']
    path.write_text(json.dumps(content))
    assert any("'annotations' is missing" in line for line in lines(check_data(cfg, ('val',)), ERROR))
    cfg.val_evaluator.format_only = True  # as for COCO's test-dev
    assert not lines(check_data(cfg, ('val',)), ERROR)


def test_classes_that_are_one_text(folder):
    errors, _ = found_in(folder, good_content(), metainfo=dict(classes='cat'))
    assert errors == ["metainfo of the config has classes='cat': it must be names, as in ('cat', 'dog')"]


def test_images_all_smaller_than_the_filter(folder):
    errors, _ = found_in(folder, good_content(), filter_cfg=dict(min_size=81))
    assert errors == ['no image is 81 pixels wide and high, as filter_cfg.min_size asks for']


def test_files_of_training_and_evaluation_are_compared(folder):
    content = good_content()
    (folder / 'train.json').write_text(json.dumps(content))
    content['categories'].reverse()
    (folder / 'val.json').write_text(json.dumps(content))
    cfg = config(folder)
    cfg.val_dataloader, cfg.val_evaluator = copy.deepcopy(cfg.train_dataloader), dict(type='CocoMetric')
    cfg.val_dataloader.dataset.ann_file = 'val.json'
    checks = check_data(cfg, ('train', 'val'))
    (error,) = lines(checks, ERROR)
    assert f"val.json: label 0 is 'dog' here and 'cat' in {folder}/train.json" in error
    assert any('images that are trained on too: 3' in line for line in lines(checks, WARNING))
    cfg.val_dataloader.dataset.ann_file = 'train.json'
    cfg.val_evaluator.ann_file = str(folder / 'val.json')  # of the evaluator alone
    assert lines(check_data(cfg, ('train', 'val')), ERROR) == [error]
    cfg.val_evaluator.ann_file = 'away.json'
    assert lines(check_data(cfg, ('val',)), ERROR) == ['away.json: this ann_file of val_evaluator does not exist']


@pytest.mark.parametrize('wrapper', ['RepeatDataset', 'ClassBalancedDataset', 'MultiImageMixDataset', 'ConcatDataset'])
def test_data_sets_in_wrappers(folder, wrapper):
    content = good_content()
    box(1, 2, -3, 4)(content)
    (folder / 'train.json').write_text(json.dumps(content))
    cfg = config(folder)
    inner = cfg.train_dataloader.dataset
    if wrapper == 'ConcatDataset':
        cfg.train_dataloader.dataset = dict(type=wrapper, datasets=[inner, dict(type='RepeatDataset', dataset=inner)])
    else:
        cfg.train_dataloader.dataset = dict(type=wrapper, dataset=inner)
    (error,) = lines(check_data(cfg, ('train',)), ERROR)
    assert 'negative width' in error


def test_which_data_sets_are_checked(folder):
    class Renamed(CocoDataset):
        METAINFO = dict(classes=CLASSES)

    class OwnReader(CocoDataset):
        def load_data_list(self):
            return []

    content = good_content()
    box(1, 2, -3, 4)(content)
    (folder / 'train.json').write_text(json.dumps(content))
    skipped = {}
    for kind in ('mmdet.CocoDataset', Renamed, OwnReader, 'VOCDataset', 'Unknown', 'CityscapesDataset'):
        cfg = config(folder)
        cfg.train_dataloader.dataset.type = kind
        (check,) = check_data(cfg, ('train',))
        skipped[check.kind] = check.skipped
        assert bool(check.skipped) != bool(check.findings)
    assert {name for name, why in skipped.items() if why} == {'OwnReader', 'VOCDataset', 'Unknown'}
    assert DATASETS.get('CocoDataset') is CocoDataset
    (check,) = check_data(config(folder, backend_args=dict(backend='petrel')), ('train',))
    assert check.skipped == "it is not on this machine's disk"
    (check,) = check_data(config(folder, wrong=1), ('train',))
    assert 'was not checked: it cannot be built: TypeError' in lines([check], WARNING)[0]


def panoptic_content():
    content = good_content()
    segments = [dict(id=i, category_id=i, bbox=[1, 2, 30, 40], area=100, iscrowd=0) for i in (1, 2)]
    for i, category in enumerate(content['categories']):
        category['isthing'] = i
    content['annotations'] = [
        dict(image_id=i, file_name=f'{i}.png', segments_info=copy.deepcopy(segments)) for i in (1, 2, 3)
    ]
    return content


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda content: None, None),
        (first('annotations', segments_info=None), "annotations without 'segments_info': 1 (annotations[0])"),
        (first('annotations', image_id=7), "segments whose image_id is not among 'images'"),
        (first('categories', isthing=None), "categories without 'isthing': 1 (category 1)"),
        (
            lambda content: content['annotations'][0]['segments_info'][0].update(id=2),
            'images with an id that several of their segments have: 1 (annotations[0])',
        ),
        (
            lambda content: content['annotations'][0]['segments_info'][0].update(category_id=9),
            "segments whose category_id is not among 'categories'",
        ),
        (
            lambda content: content['annotations'][0]['segments_info'][0].update(bbox=[1, 2, -3, 4]),
            'segments whose bbox (x, y, width, height) has a negative width or height: 1 (segment 1',
        ),
        (first('images', file_name='4.jpg'), 'maps of images that are not in'),
    ],
)
def test_panoptic_files(folder, change, message):
    (folder / 'maps').mkdir()
    for i in (1, 2, 3):
        (folder / f'maps/{i}.png').touch()
    (folder / 'images/4.jpg').touch()
    content = panoptic_content()
    change(content)
    prefix = dict(img='images/', seg='maps/')
    errors, _ = found_in(folder, content, kind='CocoPanopticDataset', data_prefix=prefix)
    assert [line[: len(message)] for line in errors] == [message] if message else not errors, errors


def test_lvis_names_images_by_their_address(folder):
    content = good_content()
    for image in content['images']:
        image['coco_url'] = f'http://images.cocodataset.org/train2017/{image.pop("file_name")}'
    (folder / 'images').rename(folder / 'train2017')
    options = dict(kind='LVISV1Dataset', data_prefix=dict(img=''))
    assert not found_in(folder, content, **options)[0]
    content['images'][0].pop('coco_url')
    assert found_in(folder, content, **options)[0] == ["images without 'coco_url': 1 (image 1)"]


def test_older_lvis_has_cocos_older_names(folder):
    content = good_content()
    for image in content['images']:
        old = f'COCO_train2014_{image["id"]:012d}.jpg'
        (folder / 'images' / image['file_name']).rename(folder / 'images' / old[-16:])
        image['file_name'] = old
    content['categories'].reverse()  # all of its categories are labels, in its own order
    for one in content['annotations']:
        one.pop('iscrowd')
    options = dict(kind='LVISV05Dataset', data_prefix=dict(img='images/'), metainfo=dict(classes=('cat', 'dog')))
    assert found_in(folder, content, **options) == ([], [])
    cfg = config(folder, **options)
    cfg.val_dataloader, cfg.val_evaluator = cfg.train_dataloader, dict(type='LVISMetric', metric='bbox')
    assert not lines(check_data(cfg, ('val',)), ERROR)  # LVIS's evaluation does not ask for crowds


def test_a_class_that_renames_images_is_checked_without_them(folder):
    content = good_content()
    content['images'][0]['file_name'] = 'images/v1/patch8/1.jpg'  # of which it takes the last two parts
    box(1, 2, -3, 4)(content)
    (error,) = found_in(folder, content, kind='Objects365V2Dataset')[0]
    assert 'negative width' in error


def test_images_without_labels_are_taken_where_the_config_wants_them(folder):
    """As in semi-supervised training."""
    content = good_content()
    del content['annotations']
    assert found_in(folder, content)[0] == ["the key 'annotations' is missing"]
    assert found_in(folder, content, filter_cfg=dict(filter_empty_gt=False)) == ([], [])


@pytest.fixture
def maps(tmp_path):
    """Images, label maps and a config of mmseg."""
    for name in ('images', 'maps'):
        (tmp_path / name / 'a').mkdir(parents=True)
    for i in range(3):
        Image.new('RGB', (20, 10)).save(tmp_path / f'images/a/{i}.jpg')
        Image.fromarray(np.full((10, 20), i, np.uint8)).save(tmp_path / f'maps/a/{i}.png')

    def write(**options):
        dataset = dict(
            type='BaseSegDataset',
            data_root=str(tmp_path),
            data_prefix=dict(img_path='images', seg_map_path='maps'),
            metainfo=dict(classes=('x', 'y', 'z')),
            pipeline=[dict(type='LoadAnnotations')],
        )
        return Config(dict(default_scope='mmseg', train_dataloader=dict(dataset=dict(dataset, **options))))

    return write


def test_label_maps(maps, tmp_path):
    def errors(**options):
        checks = check_data(maps(**options), ('train',))
        assert len(checks) == 1 and not checks[0].skipped
        return [line.partition(': ')[2] for line in lines(checks, ERROR)]

    assert errors() == [] == errors(reduce_zero_label=True)
    path = tmp_path / 'maps/a/2.png'
    what = 'label maps with values that are neither one of 3 classes{} nor 255, of the 3 that were read'
    Image.fromarray(np.array([[3, 255]] * 10, np.uint8).repeat(10, 1)).save(path)
    assert errors() == [what.format('') + f': 1 ({path}: 3)']
    assert errors(reduce_zero_label=True) == []
    assert errors(pipeline=[dict(type='LoadBiomedicalAnnotation')]) == []  # which reads them in its own way
    assert errors(metainfo=dict(classes=('x', 'y'), palette=[[0] * 3] * 2), reduce_zero_label=True) == [
        what.format(' and 0 for no label').replace('3 classes', '2 classes') + f': 1 ({path}: 3)'
    ]
    Image.new('RGB', (20, 10)).save(path)
    assert errors() == [
        f'label maps that have colors, where a class is one number, of the 3 that were read: 1 ({path}: 10 x 20 x 3)'
    ]
    Image.new('L', (10, 20)).save(path)
    assert errors() == [
        'label maps of another size than their image, of the 3 that were read: '
        f'1 ({path}: (10, 20), {tmp_path}/images/a/2.jpg: (20, 10))'
    ]
    turned = Image.Exif()
    turned[274] = 6
    Image.new('RGB', (20, 10)).save(tmp_path / 'images/a/2.jpg', exif=turned)  # read as (10, 20)
    assert errors() == [] == errors(pipeline=[dict(type='LoadAnnotations', imdecode_backend='cv2')])
    path.write_bytes(b'damaged')
    assert re.match('label maps that cannot be read, of the 3 that were read: 1 ', errors()[0])
    path.unlink()
    assert errors() == [f'images without a label map in {tmp_path}/maps: 1 ({path})']
    (tmp_path / 'list.txt').write_text('a/0\na/9\n')
    assert errors(ann_file='list.txt')[0] == (
        f'images that {tmp_path}/list.txt names and that do not exist: 1 ({tmp_path}/images/a/9.jpg)'
    )
    assert errors(img_suffix='.png') == ['there are no images that end in .png']


def test_the_result_of_a_large_file_is_kept(folder, monkeypatch):
    monkeypatch.setattr(module, 'KEPT_FROM', 1)
    monkeypatch.setenv('XDG_CACHE_HOME', str(folder / 'cache'))
    content, said, checked = good_content(), [], []
    box(1, 2, -3, 4)(content)
    path = folder / 'train.json'
    path.write_text(json.dumps(content))
    real = module.check_coco
    monkeypatch.setattr(module, 'check_coco', lambda *args: checked.append(1) or real(*args))
    runs = [lines(check_data(config(folder), ('train',), say=said.append), ERROR) for _ in range(2)]
    assert runs[0] == runs[1] and len(runs[0]) == 1 and len(checked) == 1
    assert said == [f'checking {path} (0 MiB), once', f'the result is kept in {cache_folder()}']
    (folder / 'images/1.jpg').unlink()  # the folder is looked at each time
    assert 'images that are not in' in lines(check_data(config(folder), ('train',)), ERROR)[1] and len(checked) == 1
    (kept,) = cache_folder().iterdir()
    kept.write_bytes(kept.read_bytes()[:40])
    assert len(lines(check_data(config(folder), ('train',)), ERROR)) == 2 and len(checked) == 2
    path.write_text(json.dumps(good_content()))
    assert len(lines(check_data(config(folder), ('train',)), ERROR)) == 1 and len(checked) == 3
    (folder / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(folder / 'file'))  # no folder can be made there
    said.clear()
    assert len(lines(check_data(config(folder), ('train',), say=said.append), ERROR)) == 1
    assert said[1].startswith('the result is not kept, and the next run checks again: ')


def test_a_run_stops_with_all_errors_in_one_message(folder, capsys):
    content = good_content()
    box(1, 2, -3, 4)(content)
    first('categories', name='Cat')(content)
    content['images'].append(dict(content['images'][0], id=4))
    (folder / 'train.json').write_text(json.dumps(content))
    path = folder / 'project.py'
    rest = dict(model=dict(type='X'), train_cfg=dict(max_epochs=1), optim_wrapper=dict(optimizer=dict(type='SGD')))
    path.write_text(config(folder).pretty_text + Config(rest).pretty_text)
    assert cli.main(['train', str(path)]) == 2
    said = capsys.readouterr().err
    assert 'Traceback' not in said and said.count(f'\n  {folder}/train.json: ') == 2
    assert 'negative width' in said and "none of its categories, so that labels of the others shift: 1 ('cat')" in said
    assert '--skip-data-check' in said
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    args = parser.parse_args([str(path), '--skip-data-check'])
    load_config(args, ('train',))
    assert args.data_warnings == []
    (folder / 'train.json').write_text(json.dumps(dict(content, annotations=good_content()['annotations'][:1])))
    path.write_text(path.read_text().replace("'cat'", "'Cat'"))
    args = parser.parse_args([str(path)])
    load_config(args, ('train',))
    assert any('files that several images have: 1 ("1.jpg")' in line for line in args.data_warnings)


def test_command(folder, capsys):
    content = good_content()
    box(1, 2, -3, 4)(content)
    (folder / 'train.json').write_text(json.dumps(content))
    path, out = folder / 'project.py', folder / 'data.json'
    path.write_text(config(folder).pretty_text)
    assert cli.main(['check-data', str(path), '--out', str(out)]) == 2
    said = capsys.readouterr().out
    assert f'train: CocoDataset {folder}/train.json: 3 images\n' in said and '1 errors, 1 warnings' in said
    assert f'error: {folder}/train.json: annotations whose bbox (x, y, width, height) has a negative' in said
    written = json.loads(out.read_text())
    (finding,) = [one for one in written['data'][0]['findings'] if one['severity'] == ERROR]
    assert (finding['count'], finding['examples']) == (1, ['annotation 1: [1, 2, -3, 4]'])
    (folder / 'train.json').write_text(json.dumps(good_content()))
    assert cli.main(['check-data', str(path)]) == 0
    (folder / 'train.json').unlink()
    assert cli.main(['check-data', str(path)]) == 2
    assert f'error: {folder}/train.json of train_dataloader does not exist' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['mask_rcnn_xbn_r50', 'panoptic_fpn_rbn_r50', 'pspnet_xbn_r50', 'deeplabv3_sn_r50'])
def test_the_embedded_data_have_no_errors(digits, name):
    cfg = Config.fromfile(ROOT / f'configs/{name}_digits.py')

    def relocate(tree):
        for key, value in tree.items():
            if isinstance(value, dict):
                relocate(value)
            elif isinstance(value, list):
                [relocate(one) for one in value if isinstance(one, dict)]
            elif isinstance(value, str):
                tree[key] = value.replace('data/digits', str(digits))

    relocate(cfg)
    checks = check_data(cfg, ('train', 'val', 'test'))
    assert not lines(checks, ERROR) and not any(check.skipped for check in checks)
    assert [len(check.images) for check in checks if not check.of_evaluator] == [16, 4, 4]


@pytest.mark.slow
def test_a_file_of_cocos_size_takes_seconds():
    """An eighth of COCO's training set."""
    content = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=640, height=480) for i in range(118_000 // 8)],
        annotations=[annotation(i, i % (118_000 // 8)) for i in range(860_000 // 8)],
        categories=[dict(id=1, name='cat')],
    )
    text, start = json.dumps(content).encode(), time.monotonic()
    assert check_coco(text)['findings'] == []
    assert time.monotonic() - start < 10
