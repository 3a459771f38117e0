"""Runs that differ only in their seed, and figures for a paper."""

import json
import re
import xml.etree.ElementTree

import pandas as pd
import pytest

from mmnorm.report import load_run, page, write_report
from mmnorm.report.page import file_names
from mmnorm.report.plots import Panel, for_paper, plot_curves
from mmnorm.report.seeds import over_seeds


@pytest.fixture
def run_with(make_run):
    """A function that loads a run of this name and seed, with info of run.json and an edit of its config."""

    def run_with(name, seed, edit=('', ''), **info):
        work_dir = make_run(name)
        text = (work_dir / 'mask_rcnn.py').read_text().replace('seed=7', f'seed={seed}').replace(*edit)
        (work_dir / 'mask_rcnn.py').write_text(text)
        record = json.loads((work_dir / 'run.json').read_text()) | dict(seed=seed) | info
        (work_dir / 'run.json').write_text(json.dumps(record))
        return load_run(work_dir)

    return run_with


def results_of(*runs):
    return pd.DataFrame(
        {'AP^bbox': [30.0 + i for i in range(len(runs))], 'x': None}, [run.name for run in runs], dtype=float
    )


def test_mean_and_deviation(run_with):
    runs = [run_with('gn_seed0', 0), run_with('gn_seed1', 1), run_with('gn_seed2', 2)]
    (group,) = over_seeds(runs, results_of(*runs))
    assert (group.name, group.runs, group.seeds) == ('gn', ['gn_seed0', 'gn_seed1', 'gn_seed2'], [0, 1, 2])
    assert group.mean['AP^bbox'] == 31 and group.deviation['AP^bbox'] == 1 and group.mean.isna()['x']


@pytest.mark.parametrize(
    'other',
    [
        dict(edit=('batch_size=2', 'batch_size=4')),
        dict(edit=('max_epochs=3', 'max_epochs=4')),
        dict(commit='another'),
        dict(world_size=1),
        dict(versions=dict(torch='2.12.0')),
        dict(norms=dict(BatchNorm2d=17)),
        dict(seed=0),
        dict(edit=('test_evaluator', 'broken = open\ntest_evaluator')),
    ],
)
def test_what_differs_in_more_is_no_group(run_with, other):
    runs = [run_with('a', 0), run_with('b', **dict(seed=1) | other)]
    assert over_seeds(runs, results_of(*runs)) == []


def test_groups_are_in_all_pages(run_with, tmp_path):
    other = dict(edit=('max_epochs=3', 'max_epochs=4'))
    runs = [run_with('a_0', 0), run_with('b_0', 0, **other), run_with('a_1', 1), run_with('b_1', 1, **other)]
    written = write_report(runs, tmp_path / 'out', num_images=0)
    values = pd.read_csv(written.with_suffix('.csv'), index_col='run')['AP^bbox']
    expected = f'{values[["a_0", "a_1"]].mean():.1f} ± {values[["a_0", "a_1"]].std():.1f}'
    assert f'<td>{expected}</td>' in written.read_text() and expected in written.with_suffix('.md').read_text()
    assert f'Box AP, mean and deviation over seeds: a {expected}, b ' in written.read_text()
    assert written.read_text().count('<td>0, 1</td>') == 4  # two groups, boxes and masks


def test_figures(make_run, report_main, monkeypatch):
    for panels in ('loss_panels', 'precision_panels'):  # one of each kind is enough
        every = getattr(page, panels)
        monkeypatch.setattr(page, panels, lambda of, every=every: every(of)[:1])
    work_dir = make_run()
    (work_dir / 'predictions.segm.json').unlink()
    report_main([str(work_dir), '--images', '0', '--figures'])
    figures = work_dir / 'figures'
    names = {path.stem for path in figures.iterdir()}
    assert names == {
        'loss',
        'learning_rate',
        'box_ap',
        'mask_ap',
        'box_precision_iou_0_50',
        'box_ap_per_class',
        'box_ap_by_size',
        'confusion_run',
    }
    assert set(re.findall(r'href="figures/(\w+)\.pdf"', (work_dir / 'report.html').read_text())) == names
    for name in names:
        size = xml.etree.ElementTree.parse(figures / f'{name}.svg').getroot().attrib['width']
        assert 3.3 < float(size.removesuffix('pt')) / 72 < 3.7  # inches: a column, so that 8 points stay 8 points
        pdf = (figures / f'{name}.pdf').read_bytes()
        assert pdf.startswith(b'%PDF') and b'/CreationDate' not in pdf and b'/Type3' not in pdf  # journals refuse those


def test_same_figure_gives_the_same_file():
    panel = Panel('loss', '', [pd.Series([1.0, 2.0])])
    assert for_paper(plot_curves, panel, ['a']) == for_paper(plot_curves, panel, ['a'])


def test_names_of_figures():
    assert file_names(['Box AP', 'box/ap', '../../x', '<>', 'Box AP 2', '漢']) == [
        'box_ap',
        'box_ap_2',
        'x',
        'figure',
        'box_ap_2_2',
        'figure_2',
    ]
