"""A run beside its paper: figures only of the same test set and split, and of the row whose options the run has."""

import json
from importlib.util import find_spec

import pandas as pd
import pytest
from mmengine.config import Config

from mmnorm.report import load_run, summarize, write_report
from mmnorm.report.paper import _differences, compare_with_papers
from mmnorm.report.runs import Run, as_metrics
from mmnorm.zoo import Model, Published, load_zoo

from .conftest import CLASSES, CONFIG

ROW = Published('xbn Table 9', 'XBN, 2fc', 'COCO val', {'AP^bbox': 38.19, 'AP^mask': 34.5})


@pytest.fixture
def compare(make_run, data_root, tmp_path):
    """A function that compares a run, with info of its run.json, with rows of a zoo of its config; returns both."""

    def compare(*rows, edit=('', ''), more='', run_more='', **info):
        path = tmp_path / 'mask_rcnn.py'
        path.write_text(CONFIG.format(data_root=str(data_root), classes=CLASSES).replace(*edit) + more)
        model = Model(
            'mask_rcnn',
            str(path),
            'xbn',
            'instance segmentation',
            'XBN-GN',
            'frozen',
            'R-50',
            'COCO',
            {},
            published=rows,
        )
        work_dir = make_run(f'run{len(list(tmp_path.iterdir()))}')
        (tmp_path / 'trained.py').write_text((work_dir / 'mask_rcnn.py').read_text() + run_more)
        Config.fromfile(tmp_path / 'trained.py').dump(work_dir / 'mask_rcnn.py')
        record = json.loads((work_dir / 'run.json').read_text())
        (work_dir / 'run.json').write_text(json.dumps(record | info))
        run = load_run(work_dir, 'run')
        run.notes.clear()
        results = pd.DataFrame({'AP^bbox': [40.0], 'AP^mask': [float('nan')]}, index=['run'])
        return run, compare_with_papers([run], results, {'mask_rcnn': model})

    return compare


def test_difference(compare):
    run, (comparison,) = compare(ROW)
    assert comparison.row is ROW
    assert comparison.table.loc['difference', 'AP^bbox'] == pytest.approx(1.81)
    assert comparison.table.loc['xbn Table 9', 'AP^mask'] == 34.5 and not run.notes
    assert comparison.table.loc[['run', 'difference'], 'AP^mask'].isna().all()


@pytest.mark.skipif(find_spec('mmpretrain') is None, reason='the config inherits from one of mmpretrain')
@pytest.mark.parametrize(
    ('name', 'table', 'figures'),
    [
        ('resnet50_xbn_in1k', 'xbn Table 1', {'top-1': 77.4}),
        ('resnet50_rbn_in1k', 'rbn Table 1', {'top-1 error': 22.64, 'top-5 error': 6.54}),
        ('resnet50_xbn_d8_in1k', None, {}),  # a bar of Figure 7
    ],
)
def test_classifiers(name, table, figures, tmp_path):
    """By accuracies, or by errors where the paper has these; where it only draws there is nothing to compare."""
    model = load_zoo()[name]
    run = Run('run', tmp_path, config=Config.fromfile(model.path).to_dict(), info=dict(config=str(model.path)))
    measured = as_metrics({'accuracy/top1': 77.0, 'accuracy/top5': 94.0})
    comparisons = compare_with_papers([run], pd.DataFrame([measured], index=['run']))
    assert not run.notes and [comparison.row.table for comparison in comparisons] == [table] * bool(table)
    for comparison in comparisons:
        assert comparison.table.loc[table].to_dict() == figures
        seen = {'top-1': 77.0, 'top-1 error': 23.0, 'top-5 error': 6.0}
        assert comparison.table.loc['run'].to_dict() == {key: seen[key] for key in figures}


def test_test_set_is_never_put_beside_a_validation_set(compare):
    run, comparisons = compare(Published('sn Table VII', 'SN (8,2)', 'COCO test', {'AP^bbox': 38.19}))
    assert not comparisons
    assert 'was measured on COCO test, this run on another split' in run.notes[0]


@pytest.mark.parametrize(
    ('edit', 'more'),
    [
        (("data_prefix=dict(img='images/')", "data_prefix=dict(img='other/')"), ''),
        (("ann_file='val.json'", "ann_file='val.json', indices=10"), ''),
        (("ann_file='val.json'", "ann_file='val.json', pipeline=[dict(type='Resize', scale=(9, 9))]"), ''),
        (('', ''), "val_dataloader = dict(dataset=dict(type='CocoDataset', ann_file='other.json'))"),
    ],
)
def test_other_data_is_not_compared(compare, edit, more):
    run, comparisons = compare(ROW, edit=edit, more=more)
    assert not comparisons and 'It was not evaluated on the data of' in run.notes[0]


@pytest.mark.parametrize(
    'more',
    [
        "model = dict(backbone=dict(type='XBNResNet'))",
        "model = dict(neck=dict(norm_cfg=dict(type='GN')))",
        "model = dict(type='FCOS')",
    ],
)
def test_run_with_other_norms_is_not_compared(compare, more):
    run, comparisons = compare(ROW, more=more)
    assert not comparisons and 'Its norms are not those of' in run.notes[0]


def test_other_training_gets_a_note(compare):
    run, comparisons = compare(ROW, more="train_cfg['max_epochs'] = 12\nmodel = dict(neck=dict(channels=3))")
    assert len(comparisons) == 1
    assert 'model.neck.channels, train_cfg.max_epochs differ' in run.notes[0]


def test_where_the_data_lie_does_not_matter(compare):
    run, comparisons = compare(ROW, edit=('data_root=', "data_root='elsewhere' or "))
    assert len(comparisons) == 1 and not run.notes


BY_ITERATION = "train_cfg = dict(type='IterBasedTrainLoop', max_iters=90)\nauto_scale_lr = dict({}base_batch_size=16)"


@pytest.mark.parametrize(
    ('text', 'run_more', 'said'),
    [
        (
            BY_ITERATION.format('enable=True, '),
            '',
            'batches of 8 images: the learning rate, which is for 16, was scaled, '
            'and it saw 720 images instead of 1,440.',
        ),
        (BY_ITERATION.format(''), '', 'which is for 16, was not scaled, and it saw 720 images instead of 1,440.'),
        (BY_ITERATION.format('enable=True, '), "\ntrain_cfg['max_iters'] = 180", 'which is for 16, was scaled.'),
        ('auto_scale_lr = dict(enable=True, base_batch_size=16)', '', 'which is for 16, was scaled.'),
    ],
)
def test_batch_of_another_size_gets_a_note(compare, text, run_more, said):
    """The run had 8 images a batch, of all processes."""
    run, comparisons = compare(ROW, more=text, run_more=text + run_more)
    assert len(comparisons) == 1 and run.notes[-1].endswith(said)
    assert not any('auto_scale_lr' in note for note in run.notes)
    assert not compare(ROW, more=text, run_more=text, batch_size=16)[0].notes


@pytest.mark.parametrize(
    ('text', 'other', 'differing'),
    [
        (
            'auto_scale_lr = dict(enable=True, base_batch_size=8)',
            "\nauto_scale_lr['enable'] = False",
            'auto_scale_lr.enable',
        ),
        (
            "train_dataloader['dataset'] = dict(type='CocoDataset', data_root='here', ann_file='train.json')",
            "\ntrain_dataloader['dataset']['ann_file'] = 'tiny.json'",
            'train_dataloader.dataset.ann_file',
        ),
        (
            "train_dataloader['dataset'] = dict(type='CocoDataset', pipeline=[dict(type='Resize', scale=(9, 9))])",
            "\ntrain_dataloader['dataset']['pipeline'][0]['scale'] = (5, 5)",
            'train_dataloader.dataset.pipeline',
        ),
    ],
)
def test_training_on_other_data_gets_a_note(compare, text, other, differing):
    run, comparisons = compare(ROW, more=text, run_more=text + other)
    assert len(comparisons) == 1 and f'{differing} differ.' in run.notes[0]


def test_how_training_data_are_read_does_not_matter(compare):
    text = "train_dataloader.update(num_workers=2, dataset=dict(data_root='a', pipeline=[dict(backend_args=None)]))"
    other = text.replace('=2', '=8').replace("'a'", "'b'").replace('None', "dict(backend='petrel')")
    run, comparisons = compare(ROW, more=text, run_more=other)
    assert len(comparisons) == 1 and not run.notes


@pytest.mark.parametrize('name', ['mask_rcnn_xbn_r50', 'pspnet_sn_r50_8x2_cityscapes', 'panoptic_fpn_rbn_r50'])
def test_dumped_config_differs_in_nothing(name, tmp_path):
    """What a Runner writes into the work dir is read as what it was."""
    config = Config.fromfile(load_zoo()[name].path)
    config.dump(tmp_path / 'dump.py')
    assert _differences(Config.fromfile(tmp_path / 'dump.py').to_dict(), config.to_dict()) == []


def test_config_that_inherits_from_a_row(compare, tmp_path):
    """Another name does not hide a row; run.json says where the config lies."""
    (tmp_path / 'mine.py').write_text("_base_ = './mask_rcnn.py'")
    mine = dict(config='mine.py', cwd=str(tmp_path))
    more = "train_cfg['max_epochs'] = 12"
    assert compare(ROW, more=more, run_more=more, **mine)[0].notes == []
    run, comparisons = compare(ROW, more=more, **mine)
    assert len(comparisons) == 1 and 'train_cfg.max_epochs differ' in run.notes[0]


def test_run_without_figures_says_so(compare):
    run, comparisons = compare(Published('xbn Table 9', 'XBN', 'COCO val', {'PQ': 40.0}))
    assert not comparisons and run.notes == ['It has none of the figures of xbn Table 9 (XBN: PQ 40.0).']


def test_row_whose_options_the_run_has(compare):
    """EN and EMA share a training and a config: the test's options tell one row from the other."""
    options = {'model.backbone.norm_cfg._delete_': True, 'model.backbone.norm_cfg.type': 'BN'}
    ema = Published('evalnorm Table 2', 'EMA', 'COCO val', {'AP^bbox': 22.0}, options)
    estimated = "model = dict(backbone=dict(norm_cfg=dict(type='EN', mode='online')))"
    for text, expected in ((estimated, ROW), ("model = dict(backbone=dict(norm_cfg=dict(type='BN')))", ema)):
        found = compare(ROW, ema, more=estimated, run_more=text)[1]
        assert [comparison.row for comparison in found] == [expected]
    mixed = estimated.replace('online', 'rule')
    assert compare(ROW, ema, more=estimated, run_more=mixed)[1] == []


def test_configs_of_others_are_passed_over(make_run):
    run = load_run(make_run())
    notes = list(run.notes)
    assert compare_with_papers([run], pd.DataFrame(index=['run']), {}) == [] and run.notes == notes


def test_page(make_run, data_root, tmp_path, monkeypatch):
    path = tmp_path / 'mask_rcnn.py'
    path.write_text(CONFIG.format(data_root=str(data_root), classes=CLASSES))
    model = Model(
        'mask_rcnn', str(path), 'xbn', 'instance segmentation', 'XBN-GN', 'frozen', 'R-50', 'COCO', {}, published=(ROW,)
    )
    monkeypatch.setattr('mmnorm.zoo.rows.load_zoo', lambda: {'mask_rcnn': model})
    work_dir = make_run()
    page = write_report([load_run(work_dir)], tmp_path / 'out')
    assert 'AP^bbox        30.0  published 38.19  difference -8.2' in summarize(work_dir)  # of the last validation
    assert 'has not finished' not in summarize(work_dir)
    record = json.loads((work_dir / 'run.json').read_text())
    (work_dir / 'run.json').write_text(json.dumps(dict(record, finished=None)))
    assert 'Training has not finished: the last logged iteration is 70' in summarize(work_dir)
    found = pd.read_csv(page.with_suffix('.csv'), index_col='run').at['run', 'AP^bbox']
    difference = f'{round(found, 1) - 38.19:+.1f}'.replace('-', '−')
    assert '<caption>XBN, 2fc, COCO val</caption>' in page.read_text()
    assert '<td>38.19</td>' in page.read_text() and f'<td>{difference}</td>' in page.read_text()
    markdown = page.with_suffix('.md').read_text()
    assert 'run beside xbn Table 9, XBN, 2fc, COCO val' in markdown and difference in markdown
