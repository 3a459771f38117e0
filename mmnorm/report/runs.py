"""What a run left in its work dir: the config, the logs of mmengine's Runner, and ``run.json`` of mmnorm's tools."""

import json
import logging
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from mmnorm.files import read_json
from mmnorm.literals import read_dump
from mmnorm.terminal import command

from .texts import one_line

LOGGER = logging.getLogger(__name__)
REPOSITORY = Path(__file__).resolve().parents[2]
TIMESTAMP = re.compile(r'\d{8}_\d{6}')
COCO_METRICS = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')
MARKS = {'bbox': 'bbox', 'segm': 'mask'}  # the papers' superscript of AP, by pycocotools' IoU type
# The papers' name of each COCO figure, by the key under which mmdet's CocoMetric logs it.
COCO_NAMES = {
    f'coco/{iou_type}_mAP{suffix}': f'{metric}^{mark}'
    for iou_type, mark in MARKS.items()
    for metric, suffix in zip(COCO_METRICS, ('', '_50', '_75', '_s', '_m', '_l'))
}
# The papers' name of each panoptic figure, which mmdet's CocoPanopticMetric logs in percent
PANOPTIC_NAMES = {f'coco_panoptic/{name}': name for name in ('PQ', 'SQ', 'RQ')}
# And of each accuracy, which mmpretrain's Accuracy logs in percent
ACCURACY_NAMES = {f'accuracy/top{k}': f'top-{k}' for k in (1, 5)}
MULTI_SCALE = 'mIoU (ms)'  # mIoU of a test with test-time augmentation
# mmseg's, in percent
SEGMENTATION_METRICS = ('aAcc', 'mIoU', MULTI_SCALE, 'mAcc', 'mDice', 'mFscore', 'mPrecision', 'mRecall')
NOT_METRICS = ('step', 'time', 'data_time')
OF_HOOKS = ('norm_weights/', 'norm_weights_of_layers/', 'estimation_shift/')  # mmnorm's: neither training nor metric


INFO = dict.fromkeys(('config', 'cwd', 'commit', 'device', 'started', 'finished', 'peak_memory_kind'), str)
INFO |= dict.fromkeys(('seed', 'world_size', 'batch_size', 'num_parameters', 'iterations'), int)
INFO |= dict.fromkeys(('train_seconds', 'peak_memory_mb'), (int, float)) | dict(versions=dict, norms=dict)


@dataclass
class Run:
    """One run, read from its work dir. Parts that are not there are empty, and named in ``notes``.

    Attributes:
        name: How the report calls the run.
        work_dir: The folder it was read from.
        config_file: The dumped full config; None if missing.
        config_text: Its text; '' if missing.
        config: Its content; {} if missing or unreadable.
        info: ``run.json``; {} if missing, as it is for runs of mmdet's and mmseg's own tools.
        ann_file: The test set's annotation file; None if unknown or not there.
        img_dir: The folder of its images; None if unknown or not there.
        train: One row per logged training iteration, indexed by the iteration (the first is 1). Columns are the log's
            ('loss', 'lr', 'time' in seconds, 'memory' in MiB, ...) and 'session', which counts starts and resumptions.
        val: One row per validation, indexed by the iteration after which it took place; columns as ``as_metrics`` says.
        test: Metrics of the newest test after training, as ``as_metrics`` says, and 'mIoU (ms)' of the newest one with
            test-time augmentation, if it was of the same checkpoint; {} if there was none.
        checkpoint: The checkpoint that the newest test was of; None if ``mmnorm test`` did not test it.
        predictions: SHA-256 of the files of predictions that the newest test left, by name; None if that is not known,
            as of tests by earlier versions.
        notes: What is missing or odd, a sentence each.
    """

    name: str
    work_dir: Path
    config_file: Path | None = None
    config_text: str = ''
    config: dict = field(default_factory=dict)
    info: dict = field(default_factory=dict)
    ann_file: Path | None = None
    img_dir: Path | None = None
    train: pd.DataFrame = field(default_factory=pd.DataFrame)
    val: pd.DataFrame = field(default_factory=pd.DataFrame)
    test: dict = field(default_factory=dict)
    checkpoint: str | None = None
    predictions: dict | None = None
    notes: list = field(default_factory=list)

    @property
    def test_dataset(self):
        """The config of the test set, without wrappers around it; {} if there is none."""
        return evaluated_dataset(self.config, 'test')

    @property
    def test_command(self):
        """The command that tests the run again and writes its predictions."""
        config = self.info.get('config') or self.config_file or 'CONFIG'
        return f'{command("test")} {config} CHECKPOINT --work-dir {self.work_dir}'

    @property
    def loss_terms(self):
        """Names of the logged losses, the total first."""
        return sorted((column for column in self.train if 'loss' in column), key=lambda column: column != 'loss')

    @property
    def iteration_times(self):
        """Seconds per iteration of each logged interval, without the first of each session, which is warm-up."""
        if 'time' not in self.train:
            return pd.Series(dtype=float)
        return self.train['time'][self.train.groupby('session').cumcount() > 0]

    def find(self, path):
        """Return the first place where ``path`` exists, None if it is nowhere. A relative path is tried from where
        training was started, from the repository and from the current folder."""
        roots = [self.info.get('cwd') or '.', REPOSITORY, '.']
        return next((place for root in roots if (place := Path(root, path)).exists()), None)


def evaluated_dataset(config, split):
    """Return the config (dict) of the data set of 'val' or 'test', without wrappers; {} if there is none."""
    dataset = as_dict(as_dict(config.get(f'{split}_dataloader')).get('dataset'))
    while 'dataset' in dataset:
        dataset = as_dict(dataset['dataset'])
    return dataset


def as_dict(value):
    """Return a value that should be a dict; {} if it is none."""
    return value if isinstance(value, dict) else {}


def load_run(work_dir, name=None):
    """Read a work dir as mmengine's Runner leaves it.

    Args:
        work_dir (str | Path): Holds ``<config name>.py``, ``<timestamp>/vis_data/scalars.json`` and, if mmnorm's tools
            started the run, ``run.json``. One of config and logs is enough.
        name (str, optional): Defaults to the folder's name.

    Returns:
        Run: Sessions that share the work dir are merged: a resumed one replaces what an earlier one had logged from
        the same iteration on.

    Raises:
        FileNotFoundError: ``work_dir`` is no folder, or not that of a run.
    """
    work_dir = Path(work_dir)
    if not work_dir.is_dir():
        raise FileNotFoundError(f'{work_dir} is not a folder')
    configs = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    logs = sorted(path for path in work_dir.glob('*/vis_data/scalars.json') if TIMESTAMP.fullmatch(path.parts[-3]))
    if not configs and not logs:
        raise FileNotFoundError(
            f'{work_dir} is not the work dir of a run: it has neither a config (*.py) nor logs '
            '(<timestamp>/vis_data/scalars.json)'
        )
    run = Run(name or work_dir.resolve().name, work_dir)
    run.info = read_info(work_dir / 'run.json', run.notes)
    read_config(configs, run)
    find_test_set(run)
    run.train, run.val = merge_sessions([read_scalars(path, run.notes) for path in logs])
    read_tests(run, logs[-1].parts[-3] if logs else '')
    check_training(run)
    return run


def read_record(path, notes):
    """Return the object in a JSON file; {} with a note if the file is cut short or holds something else."""
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError('not a JSON object')
    except ValueError as error:
        notes.append(f'{path} could not be read ({error}) and was skipped.')
        return {}
    return content


def read_info(path, notes):
    """Return ``run.json``, without values that are not what they should be; {} if it is missing. Both get a note."""
    if not path.exists():
        notes.append(
            f'{path} is missing, as it is for runs that {command("train")} did not start: what neither '
            'the logs nor the config tell is unknown.'
        )
        return {}
    info = read_record(path, notes)
    wrong = [key for key, kind in INFO.items() if not isinstance(info.get(key), (kind, type(None)))]
    if wrong:
        notes.append(f'{path} has {", ".join(wrong)} of another kind than mmnorm writes: left out.')
    return {key: value for key, value in info.items() if key not in wrong}


def read_config(paths, run):
    """Fill ``config_file`` and ``config`` from the dump that ``run.json`` names, or else the newest of ``paths``."""
    if not paths:
        run.notes.append(f'The config is missing from {run.work_dir}: the test set is unknown.')
        return
    named = Path(run.info.get('config') or '').name
    run.config_file = next((path for path in paths if path.name == named), paths[-1])
    run.config_text = run.config_file.read_text(encoding='utf-8', errors='replace')
    try:
        run.config = read_dump(run.config_text)
    except ValueError as error:
        note = f'{run.config_file} was not read, and nothing of it was run: {error}. The test set is unknown.'
        run.notes.append(note)
        LOGGER.warning('%s', one_line(f'{run.name}: {note}'))


def find_test_set(run):
    """Fill ``ann_file`` and ``img_dir`` from the config, with paths joined as mmengine's BaseDataset joins them."""
    dataset = run.test_dataset
    root, ann_file, img = (
        value if isinstance(value, str) else ''
        for value in (dataset.get('data_root'), dataset.get('ann_file'), as_dict(dataset.get('data_prefix')).get('img'))
    )
    if ann_file:
        run.ann_file = run.find(Path(root, ann_file))
    if dataset.get('data_prefix'):
        run.img_dir = run.find(Path(root, img))


def read_scalars(path, notes):
    """Return the records (dicts) of one session's ``scalars.json``; lines that a killed run cut short are passed over
    with a note."""
    records, others, lines = [], set(), path.read_text(encoding='utf-8-sig', errors='replace').splitlines()
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and is_figure(record.get('step')):
            records.append({key: value for key, value in record.items() if is_figure(value)})
            others |= record.keys() - records[-1].keys()
    if others:
        notes.append(f'{path} has values that are not numbers, which were left out: {", ".join(sorted(others))}.')
    if len(records) < len(lines):
        notes.append(
            f'{len(lines) - len(records)} unreadable line(s) of {path} skipped: the run was probably '
            'killed while writing.'
        )
    return records


_PLACES = ['session', 'seen_step', 'seen_epoch']  # of a validation, beside what was logged


def merge_sessions(sessions):
    """Join the logs of a first start and its resumptions.

    Args:
        sessions (list[list[dict]]): Records of each session, oldest first. Only those of training have an 'iter'.

    Returns:
        tuple[DataFrame, DataFrame]: ``Run.train`` and ``Run.val``; without records of training the index of the latter
        is ``step``, as it was logged: an epoch or an iteration.
    """
    train, val = [], []
    for session, records in enumerate(sessions):
        seen = dict(step=0)
        for record in records:
            if any(key.startswith(OF_HOOKS) for key in record):
                continue
            if 'iter' in record:
                seen = record
                train.append(dict(record, session=session, iteration=record['step']))
            else:
                val.append(
                    dict(
                        as_metrics(record),
                        session=session,
                        step=record['step'],
                        seen_step=seen['step'],
                        seen_epoch=seen.get('epoch'),
                    )
                )
    if not train:  # shorter than the logger's interval
        val = pd.DataFrame(val, columns=None if val else ['step'])
        return pd.DataFrame(), val.drop_duplicates('step', keep='last').set_index('step').drop(
            columns=_PLACES, errors='ignore'
        )
    train = pd.DataFrame(train)
    val = pd.DataFrame(val, columns=None if val else ['step', *_PLACES])
    val['iteration'] = validation_iteration(val, epoch_length(train))
    # What came after the checkpoint that a later session resumed from is lost, whether logged again by now or not.
    starts = train.groupby('session')['iteration'].min().reindex(range(len(sessions)))
    resumed_at = starts[::-1].cummin().ffill().shift().fillna(math.inf)
    kept = [frame[frame['iteration'] < frame['session'].map(resumed_at)] for frame in (train, val)]
    train, val = (frame.drop_duplicates('iteration', keep='last').set_index('iteration') for frame in kept)
    return train, val.drop(columns=['step', *_PLACES])


def epoch_length(train):
    """Return the iterations per epoch; NaN for iteration-based loops, which log no epoch."""
    if 'epoch' not in train:
        return math.nan
    firsts = train.groupby(['session', 'epoch'])['iteration'].min()
    # Records stand at the same places within every epoch, so their distance is exact even if its end is not logged.
    between = firsts.groupby('session').diff().median()
    return between if between > 0 else np.ceil((train['iteration'] / train['epoch']).max())


def validation_iteration(val, length):
    """Return the iteration (Series) after which each validation took place.

    mmengine's LoggerHook gives it as the epoch, as the iteration, or, in an iteration-based loop with mmdet's default
    settings, as 0: then the last logged iteration before it is the nearest that is known.
    """
    by_iteration = val['step'].where(val['step'] >= val['seen_step'], val['seen_step'])
    return by_iteration.where(val['step'] != val['seen_epoch'], val['step'] * length).astype(int)


def as_metrics(record):
    """Return the metrics of a logged record: COCO's as 'AP^bbox' ... 'APl^mask' in percent, NaN where there are no
    objects of that size, 'PQ', 'SQ', 'RQ', and 'top-1', 'top-5'; all others under their key with the value that was
    logged."""
    metrics = {}
    for key, value in record.items():
        if not is_figure(value):
            continue
        if key in COCO_NAMES:
            metrics[COCO_NAMES[key]] = percent(value)
        elif key not in NOT_METRICS:
            metrics[(PANOPTIC_NAMES | ACCURACY_NAMES).get(key, key)] = value
    return metrics


def is_figure(value):
    """Whether a value of a log or a result is a number that can be drawn and compared."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def percent(ap):
    """Return one of COCO's figures in percent, rounded as mmdet prints it; NaN for -1, COCO's "no such objects"."""
    return math.nan if ap < 0 else round(100 * round(float(ap), 3), 1)


def read_tests(run, newest_training):
    """Fill ``test`` and ``checkpoint`` from the newest ``<timestamp>/<timestamp>.json`` that is not older than the
    training logs, and from what ``mmnorm test`` wrote of its newest tests, plain and with test-time augmentation."""
    tests = sorted(
        path
        for path in run.work_dir.glob('*/*.json')
        if TIMESTAMP.fullmatch(path.stem) and path.stem == path.parent.name
    )
    newest_test = tests[-1].stem if tests else ''
    plain, augmented = (
        read_record(path, run.notes) if (path := run.work_dir / name).exists() else {}
        for name in ('evaluation.json', 'evaluation_tta.json')
    )
    run.predictions = sums_of_predictions((plain, augmented), max(newest_test, newest_training))
    if not tests or newest_test < newest_training:
        return
    run.test = as_metrics(read_record(tests[-1], run.notes))
    # What earlier versions of ``mmnorm test`` wrote: one file for both, and none of the first versions has a timestamp
    if plain.get('tta'):
        plain, augmented = {}, augmented or plain
    if not plain or not augmented:
        (plain or augmented).setdefault('timestamp', tests[-1].stem)
    newest = next((record for record in (plain, augmented) if record.get('timestamp') == tests[-1].stem), {})
    run.checkpoint = newest.get('checkpoint')
    multi_scale = as_dict(augmented.get('metrics')).get('mIoU')
    if not newest or multi_scale is None:
        return
    of_one_checkpoint = [
        record
        for record in (plain, augmented)
        if record.get('checkpoint') == run.checkpoint and record.get('timestamp', '') >= newest_training
    ]
    if len(of_one_checkpoint) == 2:
        run.test = as_metrics(plain['metrics'])
    elif newest is augmented:
        run.test.pop('mIoU', None)
    else:
        return
    run.test[MULTI_SCALE] = multi_scale


def sums_of_predictions(records, newest):
    """Return ``Run.predictions``.

    Args:
        records (sequence[dict]): ``evaluation.json`` and ``evaluation_tta.json``, the later of which wrote what is
            there.
        newest (str): Timestamp of the newest test or training.
    """
    with_sums = [record for record in records if isinstance(record.get('predictions'), dict)]
    if not with_sums:
        return None
    last = max(with_sums, key=lambda record: record.get('timestamp', ''))
    return last['predictions'] if last.get('timestamp', '') >= newest else {}


def check_training(run):
    """Note missing logs, a run that did not finish, and losses that are not finite."""
    if run.train.empty and not run.val.empty:
        run.notes.append(
            f'{run.work_dir} has evaluations in its log and no losses, as of a training that is shorter than the '
            'interval of the logger: no loss curves, no time per iteration. Evaluations are at the step that was '
            'logged, an epoch or an iteration.'
        )
        return
    if run.train.empty:
        run.notes.append(
            f'{run.work_dir} has no training logs (<timestamp>/vis_data/scalars.json): no loss curves, no '
            'time per iteration.'
        )
        return
    if run.info and not run.info.get('finished'):
        run.notes.append(
            f'Training has not finished: the last logged iteration is {run.train.index[-1]}. If it was '
            f'stopped, {command("train")} with --resume continues from its newest checkpoint.'
        )
    bad = run.train[run.loss_terms].replace([math.inf, -math.inf], math.nan).isna().any(axis=1)
    if bad.any():
        run.notes.append(
            f'Losses are NaN or infinite in {bad.sum()} of {len(bad)} logged intervals, first at '
            f'iteration {bad.idxmax()}.'
        )
