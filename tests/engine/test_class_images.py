"""The check of data for classification: folders by class, lists, and what heads and metrics need of them."""

import shutil

import pytest
from mmengine.config import Config
from PIL import Image

from mmnorm.engine.check_data import check_data, lines
from mmnorm.engine.findings import ERROR, WARNING
from mmnorm.engine.preflight import missing_data
from mmnorm.engine.settings import wrong_kinds

pytest.importorskip('mmpretrain')

NAMES = ('ant', 'bee', 'cat')


@pytest.fixture
def data(tmp_path):
    """Three classes of two images each to train on, and to evaluate."""
    for split in ('train', 'val'):
        for name in NAMES:
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new('RGB', (8, 8)).save(tmp_path / split / name / f'{split}{i}.png')
    return tmp_path


def config(data, num_classes=3, topk=(1,), **dataset):
    def loader(split):
        kind = dict(type='CustomDataset', data_root=str(data), data_prefix=split)
        return dict(dataset=dict(kind, pipeline=[dict(type='LoadImageFromFile')], **dataset))

    return Config(
        dict(
            default_scope='mmpretrain',
            model=dict(type='ImageClassifier', head=dict(type='LinearClsHead', num_classes=num_classes)),
            train_dataloader=loader('train'),
            val_dataloader=loader('val'),
            val_evaluator=dict(type='Accuracy', topk=topk),
        )
    )


def found_in(data, **options):
    """Errors and warnings (lists of str)."""
    checks = check_data(config(data, **options), ('train', 'val'))
    assert not any(check.skipped for check in checks)
    return [
        [line.replace(f'{data}/', '').replace(str(data), '') for line in lines(checks, severity)]
        for severity in (ERROR, WARNING)
    ]


def test_good_folders_have_nothing(data):
    assert found_in(data) == [[], []] == found_in(data, classes=NAMES)
    (check, _) = check_data(config(data), ('train', 'val'))
    assert (check.labels, check.classes, len(check.images)) == ([*NAMES], 3, 6)


def test_a_missing_folder_shifts_labels(data):
    shutil.rmtree(data / 'val/bee')
    counted = 'mmpretrain counts labels by folders, which must be the same in both, in the same order'
    errors, _ = found_in(data)
    assert errors == [f"val: label 1 is 'cat' here and 'bee' in train: {counted}"]
    errors, _ = found_in(data, classes=NAMES)
    named = (
        'it has 2 folders, and 3 classes are named, by the config or by CustomDataset itself: each folder is a class'
    )
    assert errors[0] == f'val: {named}, an empty one too'


def test_folders_that_are_no_classes(data):
    (data / 'train/.cache').mkdir()
    (data / 'val/.cache').mkdir()
    (data / 'train/cat/train0.png').rename(data / 'train/cat/train0.webp')
    (data / 'train/cat/train1.png').unlink()
    errors, warnings = found_in(data)
    hidden = 'hidden folders, each of which counts as a class and shifts the labels of others: 1 (.cache)'
    assert errors[:2] == [
        f'train: {hidden}',
        'train: it has 4 classes, and model.head.num_classes is 3',
    ]
    assert warnings == [
        'train: class folders without an image: 2 (.cache, cat)',
        'val: class folders without an image: 1 (.cache)',
    ]


def test_images_that_cannot_be_read(data):
    (data / 'train/ant/train1.png').write_bytes(b'damaged')
    (data / 'train/bee/train0.png').write_bytes(b'')
    assert found_in(data)[0] == [
        'train: images that cannot be read, of the 6 that were: 2 (train/ant/train1.png, train/bee/train0.png)'
    ]
    # none are read where the pipeline reads none
    checks = check_data(config(data, ann_file=''), ('train',), maps=1)
    assert lines(checks, ERROR) == []


def test_no_images(data):
    ends = '.bmp, .jpeg, .jpg, .pgm, .png, .ppm, .tif'
    for path in data.glob('train/*/*'):
        path.unlink()
    assert found_in(data)[0] == [f'train: there are no images that end in {ends}']


def test_lists(data):
    for split in ('train', 'val'):
        listed = [f'{name}/{split}{i}.png {NAMES.index(name)}' for name in NAMES for i in range(2)]
        (data / f'{split}.txt').write_text('\n'.join(listed))

    def errors(**options):
        cfg = config(data, **options)
        for split in ('train', 'val'):
            cfg[f'{split}_dataloader'].dataset.ann_file = f'{split}.txt'
        checks = check_data(cfg, ('train', 'val'))
        return [line.replace(f'{data}/', '') for line in lines(checks, ERROR)]

    assert errors() == [] == errors(classes=NAMES)
    (data / 'train.txt').write_text('ant/train0.png 0\nbee/away.png 1\ncat/train0.png 3\ncat/train1.png\nx y\n')
    assert errors(classes=NAMES) == [
        "train.txt: lines that do not end in a blank and a whole number, the label: 2 (line 4: 'cat/train1.png', "
        "line 5: 'x y')",
        'train.txt: labels that are none of its 3 classes: 1 (3)',
        'train.txt: images that are not in train: 1 (train/bee/away.png)',
    ]
    assert errors()[1:] == [
        'train.txt: images that are not in train: 1 (train/bee/away.png)',
        'train.txt: it has 4 classes, and model.head.num_classes is 3',
    ]


def test_heads_and_metrics_need_other_numbers_of_classes(data):
    errors, warnings = found_in(data, num_classes=1000)
    assert errors == [] and warnings == [
        'train: it has 3 classes, and model.head.num_classes is 1000: some are never trained'
    ]
    assert found_in(data, topk=(1, 5))[0] == [
        'val: top-5 accuracy, as val_evaluator asks for, needs more than 3 classes'
    ]


def test_imagenet_without_its_classes(data):
    errors, _ = found_in(data, type='ImageNet')
    assert 'it has 3 folders, and 1000 classes are named, by the config or by ImageNet itself' in errors[0]


def test_missing_folders_are_named_before_anything_is_built(data):
    dataset = dict(type='ImageNet', data_root='away', split='train')
    assert missing_data(dict(dataset=dataset)) == ['away/train']
    assert missing_data(dict(dataset=dict(dataset, data_prefix='images'))) == ['away/images']
    assert missing_data(dict(dataset=dict(dataset, data_root=str(data)))) == []
    assert missing_data(dict(dataset=dict(type='CIFAR10', data_root='away', split='train'))) == []  # it downloads them
    cfg = config(data)
    assert wrong_kinds(cfg) == []
    cfg.train_dataloader.dataset.data_prefix = 5
    assert wrong_kinds(cfg) == ['train_dataloader.dataset.data_prefix must be a dict or a text, got 5']
