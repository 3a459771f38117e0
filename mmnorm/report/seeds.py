"""Runs that differ only in their seed: mean and deviation of what they reached."""

import os
from dataclasses import dataclass

import pandas as pd

from .runs import as_dict

# What a config says of one start of a run, and what else makes two runs the same but for the seed
_OF_A_START = ('work_dir', 'launcher', 'resume')
_ALIKE = ('commit', 'dirty', 'world_size', 'batch_size', 'norms', 'versions')


@dataclass
class OverSeeds:
    """Runs that differ only in their seed.

    Attributes:
        name: What their names have in common.
        runs: Their names.
        seeds: Of each run.
        mean: Of each metric (Series); NaN where a run has none.
        deviation: Of the sample, with one degree of freedom less than runs.
    """

    name: str
    runs: list
    seeds: list
    mean: pd.Series
    deviation: pd.Series


def over_seeds(runs, results):
    """Find runs that differ only in their seed.

    Two runs do if their configs are known and equal but for seed and work dir, and commit, processes, batch size,
    norms and versions are the same.

    Args:
        runs (list[Run]): Of a report.
        results (DataFrame): As :func:`~mmnorm.report.tables.collect_results` gives them.

    Returns:
        list[OverSeeds]: Of two or more runs with different seeds, in the order of their first runs.
    """
    groups = {}
    for run in runs:
        if run.config and seed_of(run) is not None:
            groups.setdefault(_but_seed(run), []).append(run)
    found = []
    for group in groups.values():
        names, seeds = [run.name for run in group], [seed_of(run) for run in group]
        if 1 < len(group) == len(set(seeds)):
            common = os.path.commonprefix(names).rstrip('_-. ').removesuffix('seed').rstrip('_-. ')
            values = results.loc[names]
            found.append(
                OverSeeds(common or ', '.join(names), names, seeds, values.mean(skipna=False), values.std(skipna=False))
            )
    return found


def seed_of(run):
    """Return a run's seed; None if it is unknown."""
    return run.info.get('seed', as_dict(run.config.get('randomness')).get('seed'))


def _but_seed(run):
    config = {key: value for key, value in run.config.items() if key not in _OF_A_START}
    config['randomness'] = {
        key: value for key, value in as_dict(config.get('randomness')).items() if key != 'seed' and value
    }
    return repr((config, [run.info.get(key) for key in _ALIKE]))
