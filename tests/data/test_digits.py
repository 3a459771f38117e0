import importlib.util
import json
import os
import sys
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('sklearn', reason="the digits data set needs pip install 'mmnorm[demo]'")

from PIL import Image  # noqa: E402
from pycocotools import mask as rle  # noqa: E402
from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402
from sklearn.datasets import load_digits, load_sample_images  # noqa: E402

from mmnorm.cli import run_command  # noqa: E402
from mmnorm.data import CLASSIFICATION, DigitsOptions, digits, make_digits  # noqa: E402
from mmnorm.files import WriteError  # noqa: E402

SMALL = DigitsOptions(num_train=6, num_val=4, image_size=64, digits_per_image=(2, 4), digit_size=(12, 30))
CLASSES = ('background', *'0123456789')


def tree(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('digits')
    assert make_digits(folder, SMALL)  # an empty folder may exist
    return folder


def refuses(root, options, message, **kwargs):
    before = tree(root)
    with pytest.raises(FileExistsError, match=message):
        make_digits(root, options, **kwargs)
    assert tree(root) == before


# What is drawn


def test_same_options_give_same_bytes(root, tmp_path):
    make_digits(tmp_path / 'again', SMALL)
    assert tree(tmp_path / 'again') == tree(root)


def test_another_seed_gives_other_images(root, tmp_path):
    make_digits(tmp_path / 'other', replace(SMALL, seed=1))
    one, other = tree(root), tree(tmp_path / 'other')
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one)


def test_image_does_not_depend_on_counts(root, tmp_path):
    make_digits(tmp_path / 'fewer', replace(SMALL, num_train=3, num_val=1))
    images = {name: content for name, content in tree(tmp_path / 'fewer').items() if not name.endswith('.json')}
    everything = tree(root)
    assert images == {name: everything[name] for name in images}


def test_splits_share_no_scan():
    loaded = {split: digits.load_scans(split, seed=0) for split in digits.SPLITS}
    train, val = ({scan.tobytes() for scan in loaded[split][0]} for split in digits.SPLITS)
    assert not train & val
    assert sum(len(scans) for scans, _ in loaded.values()) == len(load_digits().images)
    for label in range(10):
        fraction = np.mean(loaded['val'][1] == label) / np.mean(loaded['train'][1] == label)
        assert fraction == pytest.approx(1, abs=0.05)


def test_splits_share_no_part_of_a_photograph():
    for train, val, photo in zip(digits.load_photos('train'), digits.load_photos('val'), load_sample_images().images):
        assert np.array_equal(np.hstack([train, val]), photo)


def test_digits_have_their_size_stay_visible_and_do_not_overlap(monkeypatch):
    coverages = []

    def placed(*args, place=digits.DigitsPainter._place):
        coverages.append(place(*args))
        return coverages[-1]

    monkeypatch.setattr(digits.DigitsPainter, '_place', placed)
    painter = digits.DigitsPainter(replace(SMALL, digits_per_image=(4, 4)), 'train')
    for index in range(30):
        coverages.clear()
        sample = painter.draw(index)
        assert sample.masks.shape == (4, 64, 64) and sample.labels.shape == (4,)
        assert sample.masks.sum(0).max() == 1
        assert not (sample.rim & sample.masks.any(0)).any()
        for mask, coverage in zip(sample.masks, coverages):
            whole = coverage >= 0.5
            assert not (mask & ~whole).any()
            assert mask.sum() >= 0.8 * whole.sum()
            rows, columns = np.nonzero(coverage)
            assert 11 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 30  # 12 to 30, of which one may round to nothing


def test_digits_that_find_no_room(tmp_path):
    options = replace(SMALL, digits_per_image=(4, 4), digit_size=(60, 64))
    with pytest.raises(ValueError, match=r'digits_per_image=\(4, 4\).*image_size=64: take fewer or smaller'):
        make_digits(tmp_path / 'digits', options)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('corruption', digits.CORRUPTIONS)
def test_corruption_of_val_grows_with_severity(corruption):
    clean = digits.DigitsPainter(SMALL, 'val').draw(0)
    distances = []
    for severity in range(6):
        sample = digits.DigitsPainter(replace(SMALL, corruption=corruption, severity=severity), 'val').draw(0)
        assert np.array_equal(sample.masks, clean.masks)
        distances.append(np.square(sample.image.astype(float) - clean.image).mean())
    assert distances[0] == 0
    assert np.all(np.diff(distances) > 0)


def test_corruption_leaves_train_and_annotations_alone(root, tmp_path):
    make_digits(tmp_path, replace(SMALL, corruption='blur', severity=5))
    clean, blurred = tree(root), tree(tmp_path)
    changed = {Path(name).parent.as_posix() for name in clean if clean[name] != blurred[name]}
    assert changed == {'.', 'coco/val2017', 'ade/images/validation', 'cityscapes/leftImg8bit/val/digits'}


# What is written


@pytest.mark.parametrize('split', digits.SPLITS)
@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_coco_ground_truth_scores_ap_1(root, split, iou_type):
    coco = COCO(root / f'coco/annotations/instances_{split}2017.json')
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list('0123456789')
    evaluation = COCOeval(coco, coco.loadRes([dict(ann, score=1.0) for ann in coco.dataset['annotations']]), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] >= 0.999


@pytest.mark.parametrize('split, folder', [('train', 'training'), ('val', 'validation')])
def test_layouts_agree(root, split, folder):
    coco = COCO(root / f'coco/annotations/instances_{split}2017.json')
    for image in coco.loadImgs(coco.getImgIds()):
        number = image['id']
        ade = np.array(Image.open(root / f'ade/annotations/{folder}/ADE_{split}_{number:08d}.png'))
        gt_fine = root / f'cityscapes/gtFine/{split}/digits/digits_{number:06d}_000019_gtFine_labelTrainIds.png'
        assert np.array_equal(np.array(Image.open(gt_fine)), np.where(ade == 0, 255, ade.astype(int) - 1))

        union = np.zeros_like(ade)
        for annotation in coco.loadAnns(coco.getAnnIds(number)):
            mask = coco.annToMask(annotation).astype(bool)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert annotation['bbox'] == [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation['area'] == mask.sum() == rle.area(annotation['segmentation'])
            union[mask] = int(coco.cats[annotation['category_id']]['name']) + 2
        assert np.array_equal(np.where(ade >= 2, ade, 0), union)
        assert 0 < np.mean(ade == 0) < 0.2 < np.mean(ade == 1)

        jpg = root / 'coco' / f'{split}2017' / image['file_name']
        png = root / f'cityscapes/leftImg8bit/{split}/digits/digits_{number:06d}_000019_leftImg8bit.png'
        assert os.path.samefile(jpg, root / f'ade/images/{folder}/ADE_{split}_{number:08d}.jpg')
        assert np.abs(np.array(Image.open(jpg), int) - np.array(Image.open(png), int)).mean() < 3


@pytest.mark.parametrize('split, folder', [('train', 'training'), ('val', 'validation')])
def test_panoptic_segments_are_the_instances_and_the_background(root, split, folder):
    content = json.loads((root / f'coco/annotations/panoptic_{split}2017.json').read_text())
    instances = COCO(root / f'coco/annotations/instances_{split}2017.json')
    assert content['images'] == instances.dataset['images']
    assert [(category['id'], category['name'], category['isthing']) for category in content['categories']] == [
        *((i, name, 1) for i, name in enumerate('0123456789', 1)),
        (11, 'temple', 0),
        (12, 'flower', 0),
    ]
    ids = [segment['id'] for annotation in content['annotations'] for segment in annotation['segments_info']]
    assert len(set(ids)) == len(ids) and 0 not in ids
    for image, annotation in zip(content['images'], content['annotations']):
        number = image['id']
        assert annotation['image_id'] == number
        assert annotation['file_name'] == image['file_name'].replace('.jpg', '.png')
        path = root / f'coco/annotations/panoptic_{split}2017' / annotation['file_name']
        segment_map = np.array(Image.open(path)).astype(int) @ (1, 256, 65536)
        *things, stuff = annotation['segments_info']
        for segment, instance in zip(things, instances.loadAnns(instances.getAnnIds(number)), strict=True):
            assert np.array_equal(segment_map == segment['id'], instances.annToMask(instance))
            assert all(segment[key] == instance[key] for key in ('category_id', 'bbox', 'area', 'iscrowd'))
        ade = np.array(Image.open(root / f'ade/annotations/{folder}/ADE_{split}_{number:08d}.png'))
        assert np.array_equal(segment_map == stuff['id'], ade == 1) and stuff['area'] == np.sum(ade == 1)
        assert stuff['category_id'] == 11 + digits.DigitsPainter(SMALL, split).draw(number - 1).photo
        assert np.array_equal(segment_map == 0, ade == 0)


def test_segment_ids_fill_all_three_bytes():
    sample = digits.DigitsPainter(SMALL, 'train').draw(0)
    segments, colors = digits._segments(sample, 70000)
    decoded = colors.astype(int) @ (1, 256, 65536)
    assert {segment['id'] for segment in segments} == set(np.unique(decoded)) - {0}
    assert (colors[decoded > 0] > 0).all()  # 70000 = 112 + 256 * 17 + 65536


def test_panoptic_layout_alone_brings_its_images(root, tmp_path):
    make_digits(tmp_path, replace(SMALL, layouts=['panoptic']))
    alone, everything = tree(tmp_path), tree(root)
    del alone['digits.json']
    assert len(alone) == 2 * (SMALL.num_train + SMALL.num_val + 1)
    assert all(everything[name] == content for name, content in alone.items())


def test_copies_where_there_are_no_hard_links(root, tmp_path, monkeypatch):
    def no_link(source, target):
        raise OSError('no hard links here')

    monkeypatch.setattr(os, 'link', no_link)
    make_digits(tmp_path / 'copied', SMALL)
    assert tree(tmp_path / 'copied') == tree(root)


SINGLE = DigitsOptions(**CLASSIFICATION | dict(num_train=25, num_val=10))


def test_imagenets_layout_has_a_digit_an_image_in_the_folder_of_its_class(tmp_path):
    assert make_digits(tmp_path / 'digits', SINGLE) and not make_digits(tmp_path / 'digits', SINGLE)
    make_digits(tmp_path / 'again', SINGLE)
    assert tree(tmp_path / 'digits') == tree(tmp_path / 'again')
    for split, number in (('train', 25), ('val', 10)):
        painter = digits.DigitsPainter(SINGLE, split)
        drawn = [painter.draw(index) for index in range(number)]
        assert [sample.labels.tolist() for sample in drawn] == [[index % 10] for index in range(number)]
        folders = sorted((tmp_path / 'digits' / split).iterdir())
        assert [folder.name for folder in folders] == list('0123456789')
        for folder in folders:
            names = [f'{1 + index:08d}.jpg' for index in range(number) if index % 10 == int(folder.name)]
            assert sorted(path.name for path in folder.iterdir()) == names
        image = np.asarray(Image.open(tmp_path / f'digits/{split}/3/00000004.jpg'), float)
        assert image.shape == (32, 32, 3) and np.abs(image - drawn[3].image).mean() < 5


def test_mmpretrain_reads_it(tmp_path):
    CustomDataset = pytest.importorskip('mmpretrain.datasets').CustomDataset
    make_digits(tmp_path / 'digits', SINGLE)
    found = CustomDataset(data_root=str(tmp_path / 'digits'), data_prefix='train')
    assert len(found) == 25 and ''.join(found.CLASSES) == '0123456789'
    assert all(Path(found[i]['img_path']).parent.name == str(found[i]['gt_label']) for i in range(25))


def test_single_digits_are_overwritten_as_scenes_are(tmp_path):
    make_digits(tmp_path, SINGLE)
    refuses(tmp_path, replace(SINGLE, seed=1), r'seed=0 \(now 1\): pass overwrite=True')
    assert make_digits(tmp_path, replace(SINGLE, num_train=12), overwrite=True)
    assert len(list((tmp_path / 'train').rglob('*.jpg'))) == 12


def test_only_the_chosen_layouts_are_written(tmp_path):
    make_digits(tmp_path, replace(SMALL, layouts=['coco']))
    assert {path.name for path in tmp_path.iterdir()} == {'coco', 'digits.json'}


def test_mmdet_reads_coco(root):
    coco_dataset = pytest.importorskip('mmdet.datasets').CocoDataset
    dataset = coco_dataset(
        data_root=str(root),
        ann_file='coco/annotations/instances_val2017.json',
        data_prefix=dict(img='coco/val2017/'),
        metainfo=dict(classes=CLASSES[1:]),
    )
    assert len(dataset) == SMALL.num_val
    label = digits.DigitsPainter(SMALL, 'val').draw(1).labels[0]
    assert dataset.get_data_info(1)['instances'][0]['bbox_label'] == label


def test_mmdet_reads_panoptic(root):
    mmdet_datasets = pytest.importorskip('mmdet.datasets')
    from mmcv.transforms import LoadImageFromFile
    from mmdet.datasets.transforms import LoadPanopticAnnotations

    things, stuff = tuple('0123456789'), ('temple', 'flower')
    dataset = mmdet_datasets.CocoPanopticDataset(
        data_root=str(root),
        ann_file='coco/annotations/panoptic_val2017.json',
        data_prefix=dict(img='coco/val2017/', seg='coco/annotations/panoptic_val2017/'),
        metainfo=dict(classes=things + stuff, thing_classes=things, stuff_classes=stuff),
        pipeline=[LoadImageFromFile(), LoadPanopticAnnotations()],
    )
    assert len(dataset) == SMALL.num_val
    sample, loaded = digits.DigitsPainter(SMALL, 'val').draw(1), dataset[1]
    assert np.array_equal(loaded['gt_bboxes_labels'], sample.labels)
    assert np.array_equal(loaded['gt_masks'].masks, sample.masks)
    expected = np.where(sample.rim, 255, 10 + sample.photo)
    for label, mask in zip(sample.labels, sample.masks):
        expected[mask] = label
    assert np.array_equal(loaded['gt_seg_map'], expected)


ADE = dict(data_prefix=dict(img_path='ade/images/validation', seg_map_path='ade/annotations/validation'))
CITYSCAPES = dict(data_prefix=dict(img_path='cityscapes/leftImg8bit/val', seg_map_path='cityscapes/gtFine/val'))


@pytest.mark.parametrize(
    'name, arguments',
    [
        ('BaseSegDataset', dict(ADE, reduce_zero_label=True)),
        ('ADE20KDataset', ADE),
        ('BaseSegDataset', dict(CITYSCAPES, img_suffix='_leftImg8bit.png', seg_map_suffix='_gtFine_labelTrainIds.png')),
        ('CityscapesDataset', CITYSCAPES),
    ],
)
def test_mmseg_reads_maps(root, name, arguments):
    mmseg_datasets = pytest.importorskip('mmseg.datasets')
    kind = getattr(mmseg_datasets, name)
    classes = kind.METAINFO.get('classes', CLASSES)[: len(CLASSES)]
    dataset = kind(
        data_root=str(root), metainfo=dict(classes=classes), pipeline=[mmseg_datasets.LoadAnnotations()], **arguments
    )
    assert len(dataset) == SMALL.num_val
    assert dataset.metainfo['classes'] == classes
    sample = digits.DigitsPainter(SMALL, 'val').draw(1)
    seg_map = dataset[1]['gt_seg_map']
    for label, mask in zip(sample.labels, sample.masks):
        assert np.all(seg_map[mask] == CLASSES.index(str(label)))
    assert np.array_equal(seg_map == 255, sample.rim)


# What is refused


@pytest.mark.parametrize(
    'arguments, error, message',
    [
        (dict(num_train=0), ValueError, 'num_train=0: must be at least 1'),
        (dict(num_val=2.5), TypeError, 'num_val=2.5: expected an int, got float'),
        (dict(image_size=16), ValueError, 'image_size=16: must be at least 32'),
        (dict(image_size=64), ValueError, 'digit_size=.16, 77.: a digit of 77 pixels does not fit into image_size=64'),
        (dict(digit_size=(4, 9)), ValueError, 'digit_size=4: must be at least 8'),
        (dict(digits_per_image=(3, 2)), ValueError, 'digits_per_image=.3, 2.: expected .low, high. with low <= high'),
        (dict(digits_per_image=3), TypeError, 'digits_per_image=3: expected two ints'),
        (dict(seed=-1), ValueError, 'seed=-1: must be from 0 to 4294967295'),
        (dict(corruption='fog'), ValueError, "corruption='fog': choose from noise, blur, contrast or None"),
        (dict(corruption='blur', severity=6), ValueError, 'severity=6: must be from 0 to 5'),
        (dict(severity=1), ValueError, 'severity=1 needs a corruption: choose from noise, blur, contrast'),
        (dict(layouts=()), ValueError, 'layouts=.*choose one or more from'),
        (
            dict(layouts=('imagenet',)),
            ValueError,
            'with digits_per_image=.1, 4.: in the layout imagenet an image is of on',
        ),
        (dict(CLASSIFICATION, layouts=('coco', 'imagenet')), ValueError, 'takes digits_per_image=.1, 1. and no other'),
        (dict(layouts=('coco', 'voc')), ValueError, "layouts=.'coco', 'voc'.: choose one or more from"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        DigitsOptions(**arguments)


def test_missing_library_names_the_command(monkeypatch):
    monkeypatch.delitem(sys.modules, 'mmnorm.data.digits')
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(ImportError, match=r"sklearn.*pip install 'mmnorm\[demo\]'"):
        importlib.import_module('mmnorm.data.digits')


def test_second_call_writes_nothing(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    assert not make_digits(root, replace(SMALL, layouts=['panoptic', 'cityscapes', 'ade', 'coco']))
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == before


def test_other_options_need_overwrite(tmp_path):
    make_digits(tmp_path, SMALL)
    more = replace(SMALL, num_val=5)
    refuses(tmp_path, more, r'num_val=4 \(now 5\): pass overwrite=True \(--overwrite\) or choose another folder')
    assert make_digits(tmp_path, more, overwrite=True)
    assert not make_digits(tmp_path, more)
    assert len(list((tmp_path / 'coco/val2017').iterdir())) == 5


@pytest.mark.parametrize('overwrite', [False, True])
@pytest.mark.parametrize('name, content', [('notes.txt', 'mine'), ('digits.json', '{}'), ('digits.json', 'no JSON')])
def test_a_users_folder_is_left_alone(tmp_path, name, content, overwrite):
    (tmp_path / name).write_text(content)
    refuses(tmp_path, SMALL, 'was not made by make_digits', overwrite=overwrite)


def test_a_users_file_in_a_made_folder_is_left_alone(tmp_path):
    make_digits(tmp_path, SMALL)
    (tmp_path / 'coco/annotations/mine.json').write_text('{}')
    refuses(tmp_path, SMALL, 'did not write, such as coco/annotations/mine.json', overwrite=True)


def test_files_that_appear_while_drawing_are_left_alone(tmp_path, monkeypatch):
    def appear(options, manifest=digits._manifest):
        (tmp_path / 'digits').mkdir()
        (tmp_path / 'digits/mine.txt').write_text('mine')
        return manifest(options)

    monkeypatch.setattr(digits, '_manifest', appear)
    with pytest.raises(FileExistsError, match='was not made by make_digits'):
        make_digits(tmp_path / 'digits', SMALL)
    assert tree(tmp_path) == {'digits/mine.txt': b'mine'}


@pytest.mark.parametrize('made_before', [False, True])
def test_an_interrupted_run_changes_nothing(tmp_path, monkeypatch, made_before):
    if made_before:
        make_digits(tmp_path / 'digits', SMALL)
    before = tree(tmp_path)

    def interrupted(painter, index, draw=digits.DigitsPainter.draw):
        if painter.split == 'val' and index == 2:
            raise KeyboardInterrupt
        return draw(painter, index)

    monkeypatch.setattr(digits.DigitsPainter, 'draw', interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_digits(tmp_path / 'digits', replace(SMALL, seed=1), overwrite=made_before)
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ['digits'] * made_before


def killed_between_two_renamings(root, options):
    def kill(source, target, replace=os.replace):
        if Path(target) == root:
            os._exit(9)
        replace(source, target)

    os.replace = kill
    make_digits(root, options, overwrite=True)


def test_what_a_kill_left_between_two_renamings_is_finished(tmp_path):
    root, other = tmp_path / 'digits', replace(SMALL, seed=1)
    make_digits(root, SMALL)
    process = get_context('fork').Process(target=killed_between_two_renamings, args=(root, other))
    process.start()
    process.join()
    assert process.exitcode == 9 and not root.exists() and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(FileExistsError, match=r'seed=1 \(now 0\): pass overwrite=True'):
        make_digits(root, SMALL)  # the new one is in place, and nothing is hidden
    assert [path.name for path in tmp_path.iterdir()] == ['digits']
    assert not make_digits(root, other)


def test_what_is_there_is_not_touched_where_nothing_can_be_written(tmp_path, monkeypatch):
    make_digits(tmp_path / 'digits', SMALL)
    monkeypatch.setattr(os, 'access', lambda place, mode: False)
    assert not make_digits(tmp_path / 'digits', SMALL)
    with pytest.raises(WriteError, match=f'{tmp_path} cannot be written to'):
        make_digits(tmp_path / 'other', SMALL)


# The command line


@pytest.fixture
def run(capsys):

    def run(*arguments):
        code = run_command('digits', list(map(str, arguments)))
        return code, *capsys.readouterr()

    return run


def test_tool_passes_every_option(run, tmp_path):
    arguments = (
        tmp_path,
        '--train',
        2,
        '--val',
        1,
        '--image-size',
        48,
        '--digits-per-image',
        1,
        2,
        '--digit-size',
        9,
        20,
        '--seed',
        3,
        '--corruption',
        'noise',
        '--severity',
        2,
        '--layouts',
        'ade',
        'coco',
    )
    assert run(*arguments) == (0, f'{tmp_path}: written\n', '')
    assert run(*arguments) == (0, f'{tmp_path}: already there, made with the same options\n', '')
    assert json.loads((tmp_path / 'digits.json').read_text())['options'] == dict(
        num_train=2,
        num_val=1,
        image_size=48,
        digits_per_image=[1, 2],
        digit_size=[9, 20],
        seed=3,
        corruption='noise',
        severity=2,
        layouts=['coco', 'ade'],
    )


def test_tool_takes_the_options_of_single_digits_where_none_is_given(run, tmp_path):
    assert run(tmp_path, '--layouts', 'imagenet', '--train', 2, '--val', 1)[0] == 0
    found = json.loads((tmp_path / 'digits.json').read_text())['options']
    assert found == json.loads(json.dumps(asdict(DigitsOptions(**CLASSIFICATION | dict(num_train=2, num_val=1)))))


def test_tool_overwrites_on_request(run, tmp_path):
    small = (tmp_path, '--val', 1, '--layouts', 'coco')
    assert run(*small, '--train', 1)[0] == 0
    code, _, err = run(*small, '--train', 2)
    assert code == 2
    assert err.startswith('error: ') and 'num_train=1 (now 2)' in err and err.count('\n') == 1
    assert run(*small, '--train', 2, '--overwrite')[0] == 0
