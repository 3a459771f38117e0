"""Values of a config that no run can mean, found before anything is built."""

import inspect
import os
from collections.abc import Sequence
from difflib import get_close_matches
from numbers import Integral, Real

from mmengine.runner import Runner

from mmnorm.openmmlab.configs import dicts

GROUPS = dict(
    train=('train_dataloader', 'train_cfg', 'optim_wrapper'),
    val=('val_dataloader', 'val_cfg', 'val_evaluator'),
    test=('test_dataloader', 'test_cfg', 'test_evaluator'),
)
DICTS = ('model', 'default_hooks', 'optim_wrapper', 'env_cfg', 'randomness', 'auto_scale_lr')
DICTS += tuple(f'{split}_{what}' for split in GROUPS for what in ('dataloader', 'cfg'))
# Behind the dot; where mmengine takes 0 or less, nothing is done at all, and nobody is told
LEAST = {'max_epochs': 1, 'max_iters': 1, 'val_interval': 1, 'batch_size': 1, 'num_workers': 0}


def wrong_settings(cfg, needed):
    """List the values of a config that are of no use.

    Args:
        cfg (Config): Of mmdet or mmseg, with the user's options.
        needed (tuple[str]): Which of 'train', 'val', 'test' the command cannot do without.

    Returns:
        list[str]: A line for each, which starts with its key; empty if there is none.
    """
    if cfg.get('model') is None:
        return ['model is missing']
    found = [
        f'{key} must be a dict, got {cfg[key]!r}'
        for key in DICTS
        if cfg.get(key) is not None and not isinstance(cfg[key], dict)
    ]
    if not isinstance(cfg.get('custom_hooks') or [], Sequence) or isinstance(cfg.get('custom_hooks'), str):
        found.append(f'custom_hooks must be a list, got {cfg.custom_hooks!r}')
    if not isinstance(cfg.get('resume', False), bool):
        found.append(f'resume must be True or False, got {cfg.resume!r}: the file to resume from is load_from')
    weights = cfg.get('load_from') if 'train' in needed else None
    if weights is not None and '://' not in str(weights) and not os.path.isfile(weights):
        found.append(f'load_from: {weights} does not exist')
    if found:
        return found
    if 'runner_type' not in cfg:
        found += _missing(cfg, needed)
    for key in ('train_cfg', *(f'{split}_dataloader' for split in GROUPS)):
        found += [
            _at_least(f'{key}.{name}', cfg[key][name], least)
            for name, least in LEAST.items()
            if name in (cfg.get(key) or {}) and not _is_at_least(cfg[key][name], least)
        ]
    for optimizer in dicts(cfg.get('optim_wrapper'), 'lr'):
        lr = optimizer['lr']
        if not isinstance(lr, Real) or isinstance(lr, bool) or not 0 < lr < float('inf'):
            found.append(f'optim_wrapper: lr must be a number above 0, got {lr!r}')
    for scheduler in dicts(cfg.get('param_scheduler'), 'milestones'):
        if not isinstance(scheduler['milestones'], Sequence) or not all(
            _is_at_least(step, 0) for step in scheduler['milestones']
        ):
            found.append(f'param_scheduler: milestones must be whole numbers, got {scheduler["milestones"]!r}')
    return found


def _missing(cfg, needed):
    found = []
    for split, group in GROUPS.items():
        missing = [key for key in group if cfg.get(key) is None]
        if len(missing) == len(group) and split not in needed:
            continue
        there = [key for key in group if key not in missing]
        need = f', and {" and ".join(there)} need{"s" * (len(there) == 1)} it' if there else ''
        found += [f'{key} is missing{need}' for key in missing]
    return found


def _at_least(key, value, least):
    return f'{key} must be a whole number, {least} or more, got {value!r}'


def _is_at_least(value, least):
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def merge_options(cfg, options):
    """Set what the user overrides on the command line.

    Args:
        cfg (Config): Changed in place.
        options (dict or None): Of ``--cfg-options``: keys with dots to values.

    Raises:
        ValueError: A key leads nowhere, or is almost one that is known, which it would not change.
    """
    known = {*cfg, *inspect.signature(Runner.__init__).parameters, 'auto_scale_lr', 'find_unused_parameters', 'sync_bn'}
    for key, value in (options or {}).items():
        first = key.partition('.')[0]
        meant = [] if first in known else get_close_matches(first, known, 1, 0.8)
        if meant:
            raise ValueError(f'--cfg-options {key}: there is no {first}, and nothing reads it; nearest: {meant[0]}')
        try:
            cfg.merge_from_dict({key: value})
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f'--cfg-options {key}={value}: {type(error).__name__}: {error}') from error
