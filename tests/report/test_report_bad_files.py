"""Files of a run that hold something else than they should: a note that names the file, and the rest of the report."""

import json

import pytest

from mmnorm.report import load_run, write_report
from mmnorm.report.coco import evaluate_run

from .conftest import train_line

SCALARS = '20250101_120000/vis_data/scalars.json'
DEEP = '[' * 100_000


def line(**values):
    return json.dumps(train_line(5, **values))


@pytest.mark.parametrize(
    'name, written, note',
    [
        ('run.json', DEEP, '{path} could not be read (its JSON is nested too deeply) and was skipped.'),
        ('run.json', '{"seed": 1', '{path} could not be read ('),
        ('run.json', '[1]', '{path} could not be read (not a JSON object) and was skipped.'),
        ('run.json', '{"seed": {"a": 1}, "device": 3}', '{path} has device, seed of another kind than mmnorm writes'),
        (SCALARS, line() + '\n' + DEEP, '1 unreadable line(s) of {path} skipped'),
        (SCALARS, line(loss=dict(a=1)), '{path} has values that are not numbers, which were left out: loss.'),
        (
            SCALARS,
            line(loss=[1, 2], lr='fast'),
            '{path} has values that are not numbers, which were left out: loss, lr.',
        ),
        (
            SCALARS,
            line(loss=True, time=None),
            '{path} has values that are not numbers, which were left out: loss, time.',
        ),
        (SCALARS, line(loss=10**400), '{path} has values that are not numbers, which were left out: loss.'),
        (SCALARS, line(step='5'), '1 unreadable line(s) of {path} skipped'),
        (SCALARS, line() + '\n' + json.dumps({'coco/bbox_mAP': 'high', 'step': 1}), 'coco/bbox_mAP.'),
        ('predictions.bbox.json', DEEP, '{path} was not evaluated: its JSON is nested too deeply.'),
        ('predictions.bbox.json', '{"a": 1}', '{path} was not evaluated: not every prediction has bbox, category_id'),
        ('predictions.bbox.json', '[[1]]', '{path} was not evaluated: not every prediction has bbox, category_id'),
        ('predictions.bbox.json', '[1', '{path} was not evaluated: '),
    ],
)
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_what_is_odd_is_noted(make_run, name, written, note):
    work_dir = make_run()
    (work_dir / name).write_text(written)
    run = load_run(work_dir)
    if name.startswith('predictions'):
        evaluate_run(run)
    assert any(note.format(path=work_dir / name) in said for said in run.notes), run.notes


@pytest.mark.parametrize('name', ['run.json', SCALARS, 'predictions.bbox.json'])
def test_a_byte_order_mark_changes_nothing(make_run, name):
    """As some editors write it."""
    work_dir = make_run()
    before = load_run(work_dir)
    path = work_dir / name
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    run = load_run(work_dir)
    assert run.info == before.info and run.train.equals(before.train) and run.notes == before.notes
    assert evaluate_run(run).keys() == evaluate_run(before).keys() and run.notes == before.notes


def test_a_report_of_odd_files(make_run, tmp_path):
    work_dir = make_run()
    (work_dir / 'run.json').write_text(DEEP)
    lines = [line(loss=dict(a=1)), line(step=6, loss='x'), line(step=7, loss_cls=[1]), line(step=8)]
    (work_dir / SCALARS).write_text('\n'.join(lines))
    (work_dir / 'predictions.bbox.json').write_text(DEEP)
    (work_dir / 'predictions.segm.json').unlink()
    page = write_report([load_run(work_dir)], tmp_path / 'out').read_text()
    assert 'nested too deeply' in page and 'values that are not numbers' in page
    (work_dir / SCALARS).write_text(line(loss=dict(a=1)))  # and not one loss is left
    assert 'values that are not numbers' in write_report([load_run(work_dir)], tmp_path / 'out').read_text()


@pytest.mark.parametrize('written', [DEEP, '[]', '{"images": 5}', '\ufeff{}', '{"annotations": [[]]}'])
def test_annotations_that_are_none_are_noted(make_run, tmp_path, written):
    work_dir = make_run()
    annotations = tmp_path / 'val.json'
    annotations.write_text(written)
    run = load_run(work_dir)
    run.ann_file = annotations
    assert evaluate_run(run) == {}
    assert any(f"{annotations} is not in COCO's annotation format" in note for note in run.notes), run.notes
