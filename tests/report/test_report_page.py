"""The three files of a report: figures, differences, what is missing, and that nothing in them can run or load."""

import html
import math
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmnorm.report import load_run, tables, write_report

from .conftest import CONFIG, train_line, write_session

ONE_EACH = 'Each run is one training: what another seed would change is not known.'


def report(*work_dirs, out, **kwargs):
    """Write a report and return its page and table."""
    page = write_report([load_run(work_dir) for work_dir in work_dirs], out, **kwargs)
    return page.read_text(), pd.read_csv(page.with_suffix('.csv'), index_col='run')


def test_table_has_the_figures_of_the_predictions(make_run, data_root, tmp_path):
    work_dir = make_run()
    page, table = report(work_dir, out=tmp_path / 'out')
    coco_gt = COCO(data_root / 'val.json')
    coco_eval = COCOeval(coco_gt, coco_gt.loadRes(str(work_dir / 'predictions.bbox.json')), 'bbox')
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()
    names = ['AP^bbox', 'AP50^bbox', 'AP75^bbox', 'APs^bbox', 'APm^bbox', 'APl^bbox']
    expected = np.where(coco_eval.stats[:6] < 0, np.nan, 100 * coco_eval.stats[:6])
    assert list(table.columns[:6]) == names
    assert list(table.loc['run', names]) == pytest.approx(list(expected), abs=0.051, nan_ok=True)
    for name in names[:5]:
        figure = f'{table.at["run", name]:.1f}'
        assert f'<td>{figure}</td>' in page
        assert f' {figure} |' in (tmp_path / 'out/report.md').read_text()
    assert '-100' not in page
    assert table.at['run', 'Training time (min)'] == 1.5
    assert table.at['run', 'Time per iteration, median (ms)'] == 300
    assert 'Peak memory, resident (MiB)' in table
    assert '0123abc and uncommitted changes' in page


def test_differences_are_to_the_first_run(two_runs):
    page, table = two_runs.read_text(), pd.read_csv(two_runs.with_suffix('.csv'), index_col='run')
    for name in ('AP^bbox', 'AP50^mask'):
        first, second = table[name]
        assert list(table[f'{name} - first']) == pytest.approx([0, second - first])
        text = f'{second - first:+.1f}'.replace('-', '−')
        assert text != '+0.0'
        assert f'<span class="difference">{text}</span>' in page
        assert f'({text})' in two_runs.with_suffix('.md').read_text()


@pytest.mark.parametrize(
    ('columns', 'said'),
    [
        ({'AP^bbox': [47.4], 'AP50^bbox': [70.0]}, ['Box AP: 47.4 %.']),
        ({'aAcc': [47.4]}, []),
        ({'mIoU': [40.123, 40.123]}, ['mIoU: 40.12 % in each run.', ONE_EACH]),
        (
            {'AP^bbox': [47.4, 46.0], 'AP^mask': [40.0, 41.5]},
            ['Box AP: highest in a, 47.4 %.', 'Mask AP: highest in b, 41.5 %, +1.5 from a.', ONE_EACH],
        ),
        ({'PQ': [math.nan, 30.0]}, ['PQ: 30.0 % in b.', ONE_EACH]),
        ({'PQ': [math.nan, 30.0, 31.0]}, ['PQ: highest in c, 31.0 %.', ONE_EACH]),
    ],
)
def test_what_results_come_to(columns, said):
    assert tables.in_short(pd.DataFrame(columns, index=[*'abc'][: len(next(iter(columns.values())))]), []) == said


def test_page_begins_with_what_results_come_to(two_runs):
    page, table = two_runs.read_text(), pd.read_csv(two_runs.with_suffix('.csv'), index_col='run')
    best = table['AP^bbox'].idxmax()
    name = html.escape(best).replace('&quot;', '&#34;')
    assert f'<p>Box AP: highest in {name}, {table["AP^bbox"].max():.1f} %' in page
    assert page.index('highest in') < page.index('<h2>Results')


def test_images_of_both_runs_are_beside_the_ground_truth(two_runs):
    page = two_runs.read_text()
    assert [
        page.replace('<wbr>', '').count(f'<b>{title}</b>')
        for title in ('Ground truth', 'first', 'b&lt;b&gt;&amp;&#34;')
    ] == [6, 6, 6]
    assert page.count('class="badge">worst') == 2


def test_nothing_is_loaded_and_nothing_runs(two_runs):
    page = two_runs.read_text()
    assert '<script' not in page and '&lt;script&gt;' in page
    assert 'b<b>' not in page
    assert not re.search(r'<(link|iframe|object|embed|base)\b|@import|url\(|\b(srcset|on\w+)\s*=', page)
    assert re.findall(r'href\s*=\s*"([^"]*)', page) == ['report.csv', 'report.md']  # that lie beside it
    assert set(re.findall(r'src="([^;"]*)', page)) == {'data:image/svg+xml', 'data:image/jpeg'}
    assert not re.search(r'[a-z]+://', page)
    assert '<script' not in two_runs.with_suffix('.md').read_text()


def remove(*names):
    return lambda work_dir, data_root: [(work_dir / name).unlink() for name in names]


def remove_data(name):
    """Point the config at a copy of the data that lacks a part."""

    def damage(work_dir, data_root):
        copy = work_dir.parent / 'copy'
        shutil.copytree(data_root, copy, ignore=shutil.ignore_patterns(name))
        (work_dir / 'mask_rcnn.py').write_text(CONFIG.format(data_root=str(copy), classes=()))

    return damage


def overwrite(name, content):
    return lambda work_dir, data_root: (work_dir / name).write_text(content)


MISSING = {
    'predictions': (remove('predictions.bbox.json', 'predictions.segm.json'), 'CHECKPOINT --work-dir', 30.0),
    'mask predictions': (remove('predictions.segm.json'), 'predictions.segm.json missing', None),
    'annotations': (remove_data('val.json'), 'annotation file of the test set (val.json', 30.0),
    'images': (remove_data('images'), 'images of the test set', None),
    'an image': (remove_data('1.png'), '1 of 6 chosen images cannot be read', None),
    'run.json': (remove('run.json'), 'run.json is missing', None),
    'config': (remove('mask_rcnn.py'), 'config is missing', 30.0),
    'logs': (remove('20250101_120000/vis_data/scalars.json'), 'no training logs', None),
    'whole predictions': (overwrite('predictions.bbox.json', '[{"im'), 'predictions.bbox.json was not evaluated', None),
    'fitting predictions': (overwrite('predictions.bbox.json', '[{"bbox": 1}]'), 'not every prediction has', None),
    'everything but logs': (
        remove('predictions.bbox.json', 'predictions.segm.json', 'run.json', 'mask_rcnn.py'),
        'config is missing',
        30.0,
    ),
}


@pytest.mark.parametrize('part', MISSING)
def test_report_without(part, make_run, data_root, tmp_path):
    damage, note, logged_ap = MISSING[part]
    work_dir = make_run()
    damage(work_dir, data_root)
    page, table = report(work_dir, out=tmp_path / 'out')
    assert note in page
    assert note in (tmp_path / 'out/report.md').read_text()
    if logged_ap is not None:
        assert table.at['run', 'AP^bbox'] == logged_ap
    assert ('<h2>Images' in page) == (logged_ap is None and part not in ('images',))


def test_predictions_of_another_checkpoint_are_told(make_run, tmp_path):
    page, table = report(make_run(), out=tmp_path / 'out')
    assert table.at['run', 'AP^bbox'] != 30
    assert 'the log of the validation after iteration 75 says 30.0' in page


def test_runs_on_different_data(make_run, data_root, tmp_path):
    first, second = make_run('first'), make_run('second')
    shutil.copytree(data_root, tmp_path / 'copy')
    (second / 'mask_rcnn.py').write_text(CONFIG.format(data_root=str(tmp_path / 'copy'), classes=()))
    page, _ = report(first, second, out=tmp_path / 'out')
    assert 'differences between the two may come from the data' in page
    assert page.count('found: ') == 2 * 6  # alt text and caption of the first run's pictures only


def test_semantic_segmentation(tmp_path):
    """A run of mmseg: no COCO, iterations instead of epochs."""
    work_dir = tmp_path / 'pspnet'
    lines = []
    for iteration in range(10, 50, 10):
        lines.append(train_line(iteration, epoch_length=None, **{'decode.loss_ce': 1 / iteration}))
        if iteration % 20 == 0:
            lines.append(dict(aAcc=80.12, mIoU=40.0 + iteration, mAcc=50.0, data_time=0.1, time=0.2, step=iteration))
    write_session(work_dir, '20250101_120000', lines)
    page, table = report(work_dir, out=tmp_path / 'out')
    assert table.at['pspnet', 'mIoU'] == 80.0 and table.at['pspnet', 'aAcc'] == 80.12
    assert 'metrics of this run are not COCO&#39;s' in page
    assert 'AP per class' not in page.replace('no AP per class', '') and '<h2>Images' not in page


def test_nothing_but_a_config(tmp_path):
    (tmp_path / 'config.py').write_text('a = 1')
    page, _ = report(tmp_path, out=tmp_path)
    assert 'No run has a result' in page and 'There is no evaluation' in page


def test_same_run_gives_the_same_report(make_run, tmp_path):
    work_dir = make_run()
    assert report(work_dir, out=tmp_path / 'a')[0] == report(work_dir, out=tmp_path / 'b')[0]


def test_tool_writes_into_the_work_dir(make_run, report_main, capsys):
    work_dir = make_run()
    assert report_main([str(work_dir), '--images', '3']) == 0
    assert capsys.readouterr().out.strip() == str(work_dir / 'report.html')
    assert (work_dir / 'report.html').read_text().count('<article') == 3
    assert (work_dir / 'report.md').exists() and (work_dir / 'report.csv').exists()


def test_a_comparison_goes_beside_the_first_work_dir(make_run, report_main):
    first, second = make_run('a'), make_run('b')
    assert report_main([str(first), str(second), '--images', '0']) == 0
    assert (first.parent / 'comparison/report.html').exists() and not (first / 'report.html').exists()


def test_tool_names_runs(make_run, report_main, tmp_path):
    work_dirs = [str(make_run(name)) for name in ('a', 'b')]
    assert report_main([*work_dirs, '--names', 'BN', 'XBN', '--out', str(tmp_path / 'out'), '--images', '0']) == 0
    assert list(pd.read_csv(tmp_path / 'out/report.csv', index_col='run').index) == ['BN', 'XBN']


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['run', 'run', '--out', 'out'], 'error: runs need different names, got run and run: set them with --names'),
        (['run', '--out', 'file'], 'error: file is a file, not a folder'),
    ],
)
def test_user_errors(arguments, message, make_run, report_main, capsys, tmp_path, monkeypatch):
    make_run('run')
    (tmp_path / 'file').touch()
    monkeypatch.chdir(tmp_path)
    assert report_main(arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1] == message


def test_missing_dependency(report_main, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith('mmnorm.report')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'jinja2', None)
    assert report_main(['anything']) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith('error: ') and 'jinja2' in message and "pip install 'mmnorm[report]'" in message
