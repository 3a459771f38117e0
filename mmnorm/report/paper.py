"""A run beside the row of the paper that its config reproduces."""
from dataclasses import dataclass

import pandas as pd

from mmnorm.zoo import Published, find_model

from .runs import load_run, test_dataset
from .tables import collect_results

# What says on which images a network is tested; where they lie is the user's own affair
_DATA_KEYS = ('type', 'ann_file', 'data_prefix', 'metainfo', 'ann_files')


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
    """Put runs of the zoo's configs beside their rows.

    Figures are compared only if the run was tested on what its config tests on, and the paper measured on that split:
    a test set is never put beside a validation set.

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
        str: A line for each figure that both have, '' if there is none.
    """
    run = load_run(work_dir)
    results, _ = collect_results([run], [{}])
    lines = []
    for comparison in compare_with_papers([run], results):
        lines.append(f'{comparison.row.table}, {comparison.row.row}, {comparison.row.data}:')
        lines += [f'  {name:12} {found:6.1f}  published {published:g}  difference {difference:+.1f}'
                  for name, (found, published, difference) in comparison.table.items() if pd.notna(found)]
    return '\n'.join(lines)


def _compare(run, results, zoo):
    model = find_model(run.info.get('config') or run.config_file or '', zoo)
    if model is None or not model.published or not run.config:
        return
    tested, meant = ({key: dataset.get(key) for key in _DATA_KEYS}
                     for dataset in (run.test_dataset, test_dataset(_load(model.path))))
    if tested != meant:
        run.notes.append(f"Its test set is not that of {model.config}: the paper's figures are not shown beside it.")
        return
    rows = [row for row in model.published if row.options and _has(run.config, row.options)]
    for row in rows or [row for row in model.published if not row.options]:
        split = row.data.split()[-1]
        if split not in f'{tested["ann_file"]} {tested["data_prefix"]}':
            run.notes.append(f'{row.table} ({row.row}: {row.headline}) was measured on {row.data}, this run on another '
                             'split: the two are not compared.')
            continue
        found = results.loc[run.name].reindex(list(row.metrics))
        if found.notna().any():
            table = pd.DataFrame([found.to_dict(), row.metrics], index=[run.name, row.table])
            table.loc['difference'] = table.iloc[0] - table.iloc[1]
            yield Comparison(run.name, row, table)


def _load(path):
    from mmengine.config import Config  # here and not above: it imports torch
    return Config.fromfile(path, import_custom_modules=False).to_dict()


def _has(config, options):
    def value(tree, path):
        for key in path.split('.'):
            tree = tree.get(key) if isinstance(tree, dict) else None
        return tree

    return all(value(config, path) == wanted for path, wanted in options.items() if not path.endswith('_delete_'))
