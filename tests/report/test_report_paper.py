"""A run beside its paper: figures only of the same test set and split, and of the row whose options the run has."""
import pandas as pd
import pytest

from mmnorm.report import load_run, summarize, write_report
from mmnorm.report.paper import compare_with_papers
from mmnorm.zoo import Model, Published

from .conftest import CLASSES, CONFIG

ROW = Published('xbn Table 9', 'XBN, 2fc', 'COCO val', {'AP^bbox': 38.19, 'AP^mask': 34.5})


@pytest.fixture
def compare(make_run, data_root, tmp_path):
    """A function that compares a run with rows of a zoo that has only its config; returns the run too."""

    def compare(*rows, edit=('', ''), config=CONFIG):
        path = tmp_path / 'mask_rcnn.py'
        path.write_text(config.format(data_root=str(data_root), classes=CLASSES).replace(*edit))
        model = Model('mask_rcnn', str(path), 'xbn', 'instance segmentation', 'XBN-GN', 'frozen', 'R-50', 'COCO', {},
                      published=rows)
        run = load_run(make_run())
        run.notes.clear()
        results = pd.DataFrame({'AP^bbox': [40.], 'AP^mask': [float('nan')]}, index=['run'])
        return run, compare_with_papers([run], results, {'mask_rcnn': model})

    return compare


def test_difference(compare):
    run, (comparison, ) = compare(ROW)
    assert comparison.row is ROW
    assert comparison.table.loc['difference', 'AP^bbox'] == pytest.approx(1.81)
    assert comparison.table.loc['xbn Table 9', 'AP^mask'] == 34.5 and not run.notes
    assert comparison.table.loc[['run', 'difference'], 'AP^mask'].isna().all()


def test_test_set_is_never_put_beside_a_validation_set(compare):
    run, comparisons = compare(Published('sn Table VII', 'SN (8,2)', 'COCO test', {'AP^bbox': 38.19}))
    assert not comparisons
    assert 'was measured on COCO test, this run on another split' in run.notes[0]


def test_other_data_is_not_compared(compare):
    run, comparisons = compare(ROW, edit=("data_prefix=dict(img='images/')", "data_prefix=dict(img='other/')"))
    assert not comparisons and "test set is not that of" in run.notes[0]


def test_where_the_data_lie_does_not_matter(compare):
    run, comparisons = compare(ROW, edit=('data_root=', "data_root='elsewhere' or "))
    assert len(comparisons) == 1 and not run.notes


def test_row_with_the_options_of_the_run(compare):
    wanted = Published('evalnorm Table 2', 'EMA', 'COCO val', {'AP^bbox': 22.},
                       {'randomness._delete_': True, 'randomness.seed': 7})
    other = Published('evalnorm Table 2', 'other', 'COCO val', {'AP^bbox': 23.}, {'randomness.seed': 8})
    assert [comparison.row for comparison in compare(ROW, wanted, other)[1]] == [wanted]


def test_row_without_options_if_the_run_has_none(compare):
    other = Published('evalnorm Table 2', 'other', 'COCO val', {'AP^bbox': 23.}, {'randomness.seed': 8})
    assert [comparison.row for comparison in compare(ROW, other)[1]] == [ROW]


def test_configs_of_others_are_passed_over(make_run):
    run = load_run(make_run())
    notes = list(run.notes)
    assert compare_with_papers([run], pd.DataFrame(index=['run']), {}) == [] and run.notes == notes


def test_page(make_run, data_root, tmp_path, monkeypatch):
    path = tmp_path / 'mask_rcnn.py'
    path.write_text(CONFIG.format(data_root=str(data_root), classes=CLASSES))
    model = Model('mask_rcnn', str(path), 'xbn', 'instance segmentation', 'XBN-GN', 'frozen', 'R-50', 'COCO', {},
                  published=(ROW, ))
    monkeypatch.setattr('mmnorm.zoo.rows.load_zoo', lambda: {'mask_rcnn': model})
    work_dir = make_run()
    page = write_report([load_run(work_dir)], tmp_path / 'out')
    assert 'AP^bbox        30.0  published 38.19  difference -8.2' in summarize(work_dir)  # of the last validation
    found = pd.read_csv(page.with_suffix('.csv'), index_col='run').at['run', 'AP^bbox']
    difference = f'{round(found, 1) - 38.19:+.1f}'.replace('-', '−')
    assert '<caption>XBN, 2fc, COCO val</caption>' in page.read_text()
    assert '<td>38.19</td>' in page.read_text() and f'<td>{difference}</td>' in page.read_text()
    markdown = page.with_suffix('.md').read_text()
    assert 'run beside xbn Table 9, XBN, 2fc, COCO val' in markdown and difference in markdown
