"""A run beside the row of the paper that its config reproduces."""

import copy
from dataclasses import dataclass

import pandas as pd

from mmnorm.zoo import Published, find_model

from .runs import ACCURACY_NAMES, check_training, evaluated_dataset, load_run
from .tables import collect_results

# What says on which images a network is evaluated; where they lie is the user's own affair
_DATA_KEYS = ('type', 'ann_file', 'data_prefix', 'metainfo', 'ann_files', 'indices', 'split')
# What else makes a run that of its config, and what there changes no result: where data lie, how they are read, ...
_TRAINING_KEYS = ('model', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'train_dataloader')
_OWN_KEYS = (
    'data_root',
    'backend_args',
    'num_workers',
    'persistent_workers',
    'prefetch_factor',
    'pin_memory',
    '_scope_',
    'val_interval',
)


@dataclass
class Comparison:
    """A run and a row of a paper's table.

    Attributes:
        run: Name of the run.
        row: What the paper has.
        table: The figures, metrics in columns and in rows the run, the paper, and the difference; NaN where the run
            has none.
    """

    run: str
    row: Published
    table: pd.DataFrame


def compare_with_papers(runs, results, zoo=None):
    """Put runs of the zoo's configs, and of configs that inherit from one, beside their rows.

    Figures are compared only if the run was evaluated on what its config is, the paper measured on that split (a test
    set is never put beside a validation set), and the run's norms are the row's. Other differences to the config get
    a note.

    Args:
        runs (list[Run]): Those of which a config of the zoo would be compared but cannot get a note.
        results (DataFrame): As :func:`~mmnorm.report.tables.collect_results` gives them.
        zoo (dict[str, Model] or None): Default: that of mmnorm.

    Returns:
        list[Comparison]: In the order of the runs.
    """
    return [comparison for run in runs for comparison in _compare(run, results, zoo)]


def summarize(work_dir):
    """Say how the last evaluation of a run compares with its paper.

    Args:
        work_dir (str or Path): Of a run; see :func:`~mmnorm.report.load_run`.

    Returns:
        str: A line for each figure that both have, and why there is none or what to mind; '' if there is nothing.
    """
    run = load_run(work_dir)
    results, _ = collect_results([run], [{}])
    run.notes.clear()  # what is missing is a report's affair, but not what is wrong with the training
    if not run.train.empty:
        check_training(run)
    lines = []
    for comparison in compare_with_papers([run], results):
        lines.append(f'{comparison.row.table}, {comparison.row.row}, {comparison.row.data}:')
        lines += [
            f'  {name:12} {found:6.1f}  published {published:g}  difference {difference:+.1f}'
            for name, (found, published, difference) in comparison.table.items()
            if pd.notna(found)
        ]
    return '\n'.join(lines + run.notes)


def _compare(run, results, zoo):
    config_file = run.info.get('config') or run.config_file or ''
    model = find_model(run.find(config_file) or config_file, zoo)
    rows = [row for row in model.published if row.metrics] if model else []  # of others the paper has only drawings
    if not rows or not run.config:
        return
    from mmengine.config import Config  # here and not above: it imports torch

    config = Config.fromfile(model.path, import_custom_modules=False)
    if _evaluated_data(run.config) != _evaluated_data(config.to_dict()):
        run.notes.append(
            f"It was not evaluated on the data of {model.config}: the paper's figures are not shown beside it."
        )
        return
    differing = []
    for row in rows:
        meant = copy.deepcopy(config)
        meant.merge_from_dict(row.options)
        differing = _differences(run.config, meant.to_dict())
        if not any('norm_cfg' in path or path in ('model.type', 'model.backbone.type') for path in differing):
            break
    else:
        run.notes.append(
            f'Its norms are not those of {model.config} ({", ".join(differing[:3])} differ): it is not '
            "compared with the paper's row."
        )
        return
    split = row.data.split()[-1]
    places = [f'{data["ann_file"]} {data["data_prefix"]} {data["split"]}' for data, _ in _evaluated_data(run.config)]
    if not all(split in place for place in places):
        run.notes.append(
            f'{row.table} ({row.row}: {row.headline}) was measured on {row.data}, this run on another '
            'split: the two are not compared.'
        )
        return
    found = results.loc[run.name]
    errors = {f'{name} error': 100 - found[name] for name in ACCURACY_NAMES.values() if name in found}
    found = pd.concat([found, pd.Series(errors)]).reindex(list(row.metrics))
    if found.isna().all():
        run.notes.append(f'It has none of the figures of {row.table} ({row.row}: {row.headline}).')
        return
    if differing:
        run.notes.append(
            f'It was not trained as {model.config} says: {", ".join(differing[:5])} differ'
            f'{" and more" if len(differing) > 5 else ""}.'
        )
    run.notes += _about_batch(run, config)
    table = pd.DataFrame([found.to_dict(), row.metrics], index=[run.name, row.table])
    table.loc['difference'] = table.iloc[0] - table.iloc[1]
    yield Comparison(run.name, row, table)


def _evaluated_data(config):
    """What validation and test look at: for each the data set's keys, and how its images are resized."""
    data = []
    for dataset in filter(None, (evaluated_dataset(config, split) for split in ('val', 'test'))):
        resizes = [step for step in dataset.get('pipeline') or () if 'Resize' in str(step.get('type'))]
        data.append(({key: dataset.get(key) for key in _DATA_KEYS}, resizes))
    return data


def _differences(config, meant):
    """Paths of what differs in the training of two configs (dicts)."""
    return [
        path for key in _TRAINING_KEYS for path in _differing(_shared(config.get(key)), _shared(meant.get(key)), key)
    ]


def _shared(tree):
    """A part of a config without what changes no result."""
    if isinstance(tree, dict):
        return {key: _shared(branch) for key, branch in tree.items() if key not in _OWN_KEYS}
    return [_shared(branch) for branch in tree] if isinstance(tree, (list, tuple)) else tree


def _differing(one, other, path):
    if one is None or other is None:
        one, other = ({} if value is None and isinstance(one or other, dict) else value for value in (one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            found
            for key in dict.fromkeys([*one, *other])
            for found in _differing(one.get(key), other.get(key), f'{path}.{key}')
        ]
    return [] if one == other or str(one) == str(other) else [path]


def _about_batch(run, meant):
    """Sentences (list[str]) on what batches of another size than the config (meant) is for have changed."""
    size, base = run.info.get('batch_size'), (meant.get('auto_scale_lr') or {}).get('base_batch_size')
    if not size or not base or size == base:
        return []
    scaled = (run.config.get('auto_scale_lr') or {}).get('enable')
    seen, planned = (
        (config.get('train_cfg') or {}).get('max_iters', 0) * images
        for config, images in ((run.config, size), (meant, base))
    )
    return [
        f'It was trained with batches of {size} images: the learning rate, which is for {base}, was '
        + ('scaled' if scaled else 'not scaled')
        + (f', and it saw {seen:,} images instead of {planned:,}.' if seen != planned else '.')
    ]
