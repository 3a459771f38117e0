"""Reading work dirs: logs of one and several sessions, cut-off lines, and folders that are no runs."""

import json
import math
import os
from contextlib import suppress
from unittest import mock

import pytest
from mmengine.config import Config

from mmnorm.cli.test import keep
from mmnorm.files import making_folder
from mmnorm.report import load_run, write_report
from mmnorm.report.coco import evaluate_run
from mmnorm.report.tables import final_metrics

from .conftest import CONFIG, coco_line, train_line, write_session


def lines_of(iterations, **kwargs):
    return [train_line(iteration, **kwargs) for iteration in iterations]


def test_epochs_become_iterations(make_run):
    run = load_run(make_run())
    assert list(run.train.index) == [10, 20, 35, 45, 60, 70]
    assert list(run.val.index) == [25, 50, 75]  # 25 iterations an epoch, though the log shows none of its ends
    assert list(run.val['AP^bbox']) == [10.0, 20.0, 30.0]
    assert run.val['APl^mask'].isna().all()  # -1: no large objects


@pytest.mark.parametrize('step', [20, 0])  # mmseg logs the iteration, mmdet's defaults 0
def test_iterations_of_an_iteration_based_loop(tmp_path, step):
    lines = lines_of([10, 20], epoch_length=None) + [dict(mIoU=40.5, step=step)] + lines_of([30], epoch_length=None)
    write_session(tmp_path, '20250101_120000', lines)
    assert load_run(tmp_path).val['mIoU'].to_dict() == {20: 40.5}


def test_evaluations_of_a_training_that_logged_no_loss(tmp_path):
    write_session(tmp_path, '20250101_120000', [coco_line(1, 0.1), coco_line(2, 0.2)])
    write_session(tmp_path, '20250101_130000', [coco_line(2, 0.3)])
    run = load_run(tmp_path)
    assert run.train.empty and run.val['AP^bbox'].to_dict() == {1: 10.0, 2: 30.0} and run.val.index.name == 'step'
    assert not {'session', 'seen_step', 'seen_epoch'} & {*run.val}
    assert final_metrics(run, {})[1] == 'the log of the validation after step 2'
    assert any('shorter than the interval' in note for note in run.notes)
    assert 'There is no evaluation' not in ''.join(run.notes) and 'no training logs' not in ''.join(run.notes)
    report = write_report([run], tmp_path / 'report')
    assert '30.0' in report.read_text()


def test_resumed_session_replaces_what_it_repeats(make_run):
    work_dir = make_run()
    resumed = lines_of([35, 45], loss=100.0) + [coco_line(2, 0.5)]
    write_session(work_dir, '20250101_130000', resumed)
    run = load_run(work_dir)
    assert list(run.train.index) == [10, 20, 35, 45]  # epoch 3 came from weights that the resumption threw away
    assert list(run.train['loss'] == 100) == [False, False, True, True]
    assert run.val['AP^bbox'].to_dict() == {25: 10.0, 50: 50.0}


def test_session_without_logs_between_others(make_run):
    work_dir = make_run()
    write_session(work_dir, '20250101_130000', [])
    write_session(work_dir, '20250101_140000', lines_of([60], loss=100.0))
    run = load_run(work_dir)
    assert list(run.train.index) == [10, 20, 35, 45, 60]
    assert run.train['loss'].iloc[-1] == 100


def test_first_interval_of_a_session_is_warm_up(tmp_path):
    write_session(tmp_path, '20250101_120000', lines_of([10], time=9.0) + lines_of([20, 30], time=0.2))
    write_session(tmp_path, '20250101_130000', lines_of([40], time=9.0) + lines_of([50], time=0.4))
    assert list(load_run(tmp_path).iteration_times) == [0.2, 0.2, 0.4]


def test_cut_off_line(make_run):
    work_dir = make_run()
    log = work_dir / '20250101_120000/vis_data/scalars.json'
    log.write_text(log.read_text() + '{"lr": 0.01, "lo')
    run = load_run(work_dir)
    assert len(run.train) == 6
    assert any('1 unreadable line' in note for note in run.notes)


def test_losses_that_are_not_numbers(tmp_path):
    write_session(
        tmp_path, '20250101_120000', lines_of([10]) + lines_of([20], loss=math.nan) + lines_of([30], loss=math.inf)
    )
    assert any('2 of 3 logged intervals, first at iteration 20' in note for note in load_run(tmp_path).notes)


def test_unfinished(make_run):
    work_dir = make_run()
    info = json.loads((work_dir / 'run.json').read_text()) | dict(finished=None)
    (work_dir / 'run.json').write_text(json.dumps(info))
    assert any('has not finished: the last logged iteration is 70' in note for note in load_run(work_dir).notes)


def test_test_counts_only_after_training(make_run):
    work_dir = make_run()
    for timestamp, miou in (('20250101_110000', 1.0), ('20250101_130000', 2.0)):
        (work_dir / timestamp).mkdir()
        (work_dir / timestamp / f'{timestamp}.json').write_text(json.dumps(dict(mIoU=miou, time=0.1)))
    assert load_run(work_dir).test == {'mIoU': 2.0}
    write_session(work_dir, '20250101_140000', lines_of([80]))
    assert load_run(work_dir).test == {}


def test_single_and_multi_scale_of_one_checkpoint_stand_together(make_run):
    work_dir = make_run()

    def test(timestamp, checkpoint, miou, tta):
        metrics = dict(mIoU=miou, mAcc=miou + 1)
        (work_dir / timestamp).mkdir()
        (work_dir / timestamp / f'{timestamp}.json').write_text(json.dumps(metrics))
        (work_dir / ('evaluation_tta.json' if tta else 'evaluation.json')).write_text(
            json.dumps(dict(checkpoint=checkpoint, timestamp=timestamp, metrics=metrics))
        )
        run = load_run(work_dir)
        assert run.checkpoint == checkpoint
        return run.test

    assert test('20250101_130000', 'a.pth', 40.0, tta=True) == {'mIoU (ms)': 40.0, 'mAcc': 41.0}
    both = {'mIoU': 38.0, 'mAcc': 39.0, 'mIoU (ms)': 40.0}
    assert test('20250101_140000', 'a.pth', 38.0, tta=False) == both
    assert test('20250101_150000', 'b.pth', 50.0, tta=False) == {'mIoU': 50.0, 'mAcc': 51.0}
    assert test('20250101_160000', 'b.pth', 52.0, tta=True) == {'mIoU': 50.0, 'mAcc': 51.0, 'mIoU (ms)': 52.0}
    write_session(work_dir, '20250101_170000', lines_of([80]))
    assert load_run(work_dir).test == {}
    assert test('20250101_180000', 'b.pth', 53.0, tta=True) == {'mIoU (ms)': 53.0, 'mAcc': 54.0}


@pytest.mark.parametrize(
    ('record', 'test'),
    [
        (dict(checkpoint='a.pth', metrics=dict(mIoU=40.0)), {'mIoU': 40.0}),
        (dict(checkpoint='a.pth', tta=False, metrics=dict(mIoU=40.0)), {'mIoU': 40.0}),
        (dict(checkpoint='a.pth', tta=True, metrics=dict(mIoU=40.0)), {'mIoU (ms)': 40.0}),
    ],
)
def test_evaluation_of_earlier_versions(make_run, record, test):
    """They wrote one file, without a timestamp: it is of the newest test, unless newer versions tested as well."""
    work_dir = make_run()

    def log(timestamp, **metrics):
        (work_dir / timestamp).mkdir()
        (work_dir / timestamp / f'{timestamp}.json').write_text(json.dumps(metrics))

    log('20250101_130000', mIoU=40.0)
    (work_dir / 'evaluation.json').write_text(json.dumps(record))
    run = load_run(work_dir)
    assert run.checkpoint == 'a.pth' and run.test == test
    log('20250101_140000', mIoU=42.0)
    augmented = dict(checkpoint='a.pth', timestamp='20250101_140000', metrics=dict(mIoU=42.0))
    (work_dir / 'evaluation_tta.json').write_text(json.dumps(augmented))
    run = load_run(work_dir)  # of when the older was is not known: maybe before a training that the newer is after
    assert run.checkpoint == 'a.pth' and run.test == {'mIoU (ms)': 42.0}


@pytest.fixture
def tested(make_run, tmp_path):
    """A function that does what the end of ``mmnorm test`` does, and returns what the report evaluates and notes."""
    work_dir = make_run()
    written = {name: (work_dir / f'predictions.{name}.json').read_text() for name in ('bbox', 'segm')}

    def test(timestamp, score=1, kill_at=None):
        (work_dir / timestamp).mkdir()
        (work_dir / timestamp / f'{timestamp}.json').write_text(json.dumps({'coco/bbox_mAP': 0.5}))
        with making_folder(work_dir / 'predictions') as new:
            for name, text in written.items():
                (new / f'predictions.{name}.json').write_text(text.replace('"score": 0.', f'"score": 0.{score}'))
            left, replace = [kill_at], os.replace

            def killed(*paths):
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] = left[0] and left[0] - 1
                replace(*paths)

            record = dict(timestamp=timestamp, checkpoint='a.pth', metrics={})
            with mock.patch('os.replace', killed), suppress(KeyboardInterrupt):
                keep(work_dir, new, 'evaluation.json', record)
        return evaluated()

    def evaluated():
        run = load_run(work_dir)
        return sorted(evaluate_run(run)), ' '.join(note for note in run.notes if 'not evaluated' in note)

    test.evaluated, test.work_dir = evaluated, work_dir
    return test


def test_predictions_and_figures_of_one_test_stand_together(tested):
    assert tested('20250101_130000') == (['bbox', 'segm'], '')
    assert not list(tested.work_dir.glob('.*'))
    # killed after the first, the second and before the record: what is there of the new test has no figures beside it
    for kill_at, timestamp in enumerate(('20250101_140000', '20250101_150000', '20250101_160000')):
        kept, note = tested(timestamp, score=kill_at + 2, kill_at=kill_at)
        assert kept == [] and f'{tested.work_dir}/predictions.bbox.json is not what the newest test' in note
        assert 'predictions.segm.json' in note and not list(tested.work_dir.glob('.*'))
    assert tested('20250101_170000', score=9) == (['bbox', 'segm'], '')


def test_a_training_after_the_test_has_other_predictions(tested):
    tested('20250101_130000')
    write_session(tested.work_dir, '20250101_140000', lines_of([80]))
    assert tested.evaluated()[0] == [] and 'a training followed' in tested.evaluated()[1]


def test_predictions_that_somebody_changed_are_not_those_of_the_test(tested):
    tested('20250101_130000')
    (tested.work_dir / 'predictions.segm.json').write_text('[]')
    assert tested.evaluated()[0] == ['bbox'] and 'predictions.segm.json is not' in tested.evaluated()[1]


def test_paths_are_relative_to_where_training_started(make_run, data_root, tmp_path):
    work_dir = make_run()
    (tmp_path / 'linked').symlink_to(data_root)
    (work_dir / 'mask_rcnn.py').write_text(CONFIG.format(data_root='linked/', classes=()))
    run = load_run(work_dir)  # run.json says that training started in tmp_path
    assert run.ann_file == tmp_path / 'linked/val.json'
    assert run.img_dir == tmp_path / 'linked/images'


def test_config_named_by_run_json_is_taken(make_run):
    work_dir = make_run()
    (work_dir / 'other.py').write_text('a = 1')
    assert load_run(work_dir).config_file.name == 'mask_rcnn.py'


@pytest.mark.parametrize(
    ('content', 'where'),
    [
        ('open("ran", "w")', 'line 1 is more than'),
        ('a = 1\nimport os', 'line 2 is more than'),
        ('a = dict(\n    b=open("ran", "w"))', 'line 2 is more than'),
        ('a = dict([("b", open("ran", "w"))])', 'line 1 is more than'),
        ('a = {**dict(b=1)}', 'line 1 is more than'),
        ('a = [b for b in "ab"]', 'line 1 is more than'),
        ('a = f"{open(0)}"', 'line 1 is more than'),
        ('a = nowhere.Class', 'line 1 is more than'),
        ('a = 9 ** 9 ** 9', 'line 1 is more than'),
        ('dict = open', 'line 1 is more than'),
        ('a, b = 1, 2', 'line 1 is more than'),
        ('a = {[]: 1}', 'unhashable'),
        ('a = ', 'line 1 is not Python'),
        ('a = ' + '[' * 100_000, 'is not Python'),
        ('a = ' + '-' * 100_000 + '1', 'nested too deeply'),
        ('a = "\0"', 'null bytes'),
    ],
)
def test_config_that_is_more_than_a_dump_is_not_run(make_run, monkeypatch, caplog, content, where):
    work_dir = make_run()
    (work_dir / 'mask_rcnn.py').write_text(content)
    monkeypatch.chdir(work_dir)
    run = load_run(work_dir)
    assert run.config == {} and not (work_dir / 'ran').exists()
    (note,) = [note for note in run.notes if 'mask_rcnn.py was not read, and nothing of it was run' in note]
    assert where in note and note in caplog.text


def test_dump_is_read_as_what_it_was(make_run):
    work_dir = make_run()
    values = dict(a=[1, -2.5, (3,)], b={'c.d': dict(e=None, f=True)}, g=math.inf, h=-math.inf, i='\'"\n', j={}, k=())
    config = Config(dict(values, model=dict(type='A', scope=dict(x=[dict(y={0: dict(z=1)})]))))
    config.dump(work_dir / 'mask_rcnn.py')
    (work_dir / 'mask_rcnn.py').write_bytes(b'\xef\xbb\xbf' + (work_dir / 'mask_rcnn.py').read_bytes())
    assert load_run(work_dir).config == config.to_dict()


@pytest.mark.parametrize('content', ['{"seed": 0', '[1]', ''])
def test_run_json_that_cannot_be_read(make_run, content):
    work_dir = make_run()
    (work_dir / 'run.json').write_text(content)
    assert any('run.json could not be read' in note for note in load_run(work_dir).notes)


def test_not_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match='is not a folder'):
        load_run(tmp_path / 'nothing')
    with pytest.raises(FileNotFoundError, match='neither a config .* nor logs'):
        load_run(tmp_path)


def test_what_hooks_log_is_neither_training_nor_validation(tmp_path):
    hooked = {'estimation_shift/backbone.bn1/esm_mu': 0.5, 'step': 2}
    weights = {'norm_weights/all/kl': 0.1, 'step': 2}
    write_session(tmp_path, '20250101_120000', [train_line(1), weights, train_line(2), hooked, coco_line(1, 0.3)])
    run = load_run(tmp_path)
    assert len(run.train) == 2 and len(run.val) == 1
    assert not any('/' in column for column in (*run.train, *run.val))
