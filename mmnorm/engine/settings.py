"""Values of a config that no run can mean, found before anything is built."""

import inspect
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from numbers import Integral, Real

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmnorm.openmmlab.configs import dicts, placed_dicts

from .checkpoint import check_exists

GROUPS = dict(
    train=('train_dataloader', 'train_cfg', 'optim_wrapper'),
    val=('val_dataloader', 'val_cfg', 'val_evaluator'),
    test=('test_dataloader', 'test_cfg', 'test_evaluator'),
)
DICTS = ('model', 'default_hooks', 'optim_wrapper', 'env_cfg', 'randomness', 'auto_scale_lr')
DICTS += tuple(f'{split}_{what}' for split in GROUPS for what in ('dataloader', 'cfg'))
_DATASET = dict(ann_file=str, data_root=str, data_prefix=dict, pipeline=(list, tuple), metainfo=dict)
KINDS = {  # of what stands anywhere below a key
    'model': dict(init_cfg=(dict, list, tuple), pretrained=(str, bool)),
    'optim_wrapper': dict(optimizer=dict),
    'default_hooks': dict(checkpoint=dict),
    **{f'{split}_dataloader': dict(_DATASET, dataset=dict) for split in GROUPS},
}
_NAMES = {
    dict: 'a dict',
    (dict, str): 'a dict or a text',
    str: 'a text',
    (str, bool): 'a text, True or False',  # of timm's backbones
    (list, tuple): 'a list',
    (dict, list, tuple): 'a dict or a list of them',
}
_LOADER = dict(batch_size=1, num_workers=0)
# Of whole numbers; where mmengine takes less, nothing is done at all, and nobody is told
LEAST = {
    'train_cfg': dict(max_epochs=1, max_iters=1, val_interval=1),
    **{f'{split}_dataloader': _LOADER for split in GROUPS},
    'default_hooks.checkpoint': dict(interval=1, max_keep_ckpts=1),
    'auto_scale_lr': dict(base_batch_size=1),
    'log_processor': dict(window_size=1),
}
NEVER = ('interval', 'max_keep_ckpts')  # which may be -1 as well: none, and all


def wrong_settings(cfg, needed):
    """List the values of a config that are of no use.

    Args:
        cfg (Config): Of mmdet, mmseg or mmpretrain, with the user's options.
        needed (tuple[str]): Which of 'train', 'val', 'test' the command cannot do without.

    Returns:
        list[str]: A line for each, which starts with its key; empty if there is none.
    """
    if cfg.get('model') is None:
        return ['model is missing']
    found = wrong_kinds(cfg)
    if not isinstance(cfg.get('custom_hooks') or [], Sequence) or isinstance(cfg.get('custom_hooks'), str):
        found.append(f'custom_hooks must be a list, got {cfg.custom_hooks!r}')
    if not isinstance(cfg.get('resume', False), bool):
        found.append(f'resume must be True or False, got {cfg.resume!r}: the file to resume from is load_from')
    weights = cfg.get('load_from') if 'train' in needed else None
    if weights is not None and not isinstance(weights, str):
        found.append(f'load_from must be the path of a file, got {weights!r}')
    elif weights is not None:
        try:
            check_exists(weights)
        except FileNotFoundError as error:
            found.append(f'load_from: {error}')
    if found:
        return found
    if 'runner_type' not in cfg:
        found += _missing(cfg, needed)
    for key, numbers in LEAST.items():
        part = _at(cfg, key)
        found += [
            f'{key}.{name} must be a whole number, {least} or more{", or -1" * (name in NEVER)}, got {part[name]!r}'
            for name, least in numbers.items()
            if isinstance(part, dict)
            and name in part
            and not _is_at_least(part[name], least)
            and not (name in NEVER and type(part[name]) is int and part[name] == -1)
        ]
    scope = cfg.get('default_scope') or 'mmengine'
    if scope not in MODELS.children and find_spec(scope.partition('.')[0]) is None:
        found.append(f'default_scope: there is no package {scope!r}, as there is mmdet, mmseg or mmpretrain')
    saves = _at(cfg, 'default_hooks.checkpoint') or {}
    if saves.get('type') == CheckpointHook.__name__:  # which passes what it does not know to what does not know it
        functions = CheckpointHook.__init__, Runner.save_checkpoint
        known = {'type', 'priority', *(name for of in functions for name in inspect.signature(of).parameters)}
        found += [
            f'default_hooks.checkpoint has no argument {name}; nearest: {", ".join(get_close_matches(name, known))}'
            for name in saves.keys() - known
            if not name.startswith('_')
        ]
    for key in (f'{split}_dataloader' for split in GROUPS):
        found += [
            f'{place}.indices leaves no image, got {part["indices"]!r}'
            for place, part in placed_dicts(cfg.get(key), key)
            if 'indices' in part and part['indices'] in (0, [], ())
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


def wrong_kinds(cfg):
    """List the values of a config that are of another kind than what reads them needs; as :func:`wrong_settings`."""
    kinds = {'': dict(dict.fromkeys(DICTS, dict), work_dir=str, default_scope=str), **KINDS}
    if cfg.get('default_scope') == 'mmpretrain':
        prefix = dict(data_prefix=(dict, str))
        kinds |= {f'{split}_dataloader': KINDS[f'{split}_dataloader'] | prefix for split in GROUPS}
    return [
        f'{place}.{name} must be {_NAMES[kind]}, got {part[name]!r}'.lstrip('.')
        for key, wanted in kinds.items()
        for place, part in ([('', cfg)] if not key else placed_dicts(_at(cfg, key), key))
        for name, kind in wanted.items()
        if part.get(name) is not None and not isinstance(part[name], kind)
    ]


def _at(cfg, key):
    """The value of a key with dots; None if there is none."""
    for step in key.split('.'):
        cfg = cfg.get(step) if isinstance(cfg, (dict, Config)) else None
    return cfg


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


def _is_at_least(value, least):
    whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())  # as of 1e5 and 9 / 3
    return whole and not isinstance(value, bool) and value >= least


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
