"""A config, as the commands run it."""

import os
from functools import partial
from pathlib import Path

import torch
import yaml
from mmengine.config import Config
from mmengine.fileio.handlers import yaml_handler

from mmnorm.files import check_file
from mmnorm.norms.checks import warn_once
from mmnorm.openmmlab.configs import SYNC_TYPES, replace_norm_types
from mmnorm.terminal import command, on_first_rank

from .check_data import check_data, lines
from .findings import ERROR, WARNING
from .preflight import frozen_from_scratch, problems, unseen_weights
from .settings import merge_options, wrong_settings


def load_config(args, splits, initializes=True):
    """Read the config of a command's arguments, fit it to this machine, and stop if something that it needs is missing.

    Args:
        args (Namespace): From a parser with :func:`mmnorm.cli.arguments.add_run_arguments`. Gets ``data_warnings``, a
            list of lines (str) for the log.
        splits (tuple[str]): Which of 'train', 'val', 'test' the command reads.
        initializes (bool): Whether a command that reads 'train' loads pretrained weights.

    Returns:
        Config: With ``work_dir`` and ``launcher`` set.

    Raises:
        ValueError: The file or an option cannot be read.
        SystemExit: With a message for the user: what is wrong or missing.
    """
    cfg = parse_config(args.config)
    merge_options(cfg, args.cfg_options)
    needed = [split for split in splits if split == 'test' or (split == 'train' and initializes)]
    wrong = wrong_settings(cfg, needed)
    if wrong:
        stop('\n'.join(f'{args.config}: {message}' for message in wrong))
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(args.config).stem))
    cfg.launcher = args.launcher
    if args.timeout:
        cfg.merge_from_dict({'env_cfg.dist_cfg.timeout': args.timeout})
    found = problems(cfg, args.check or 1, splits, initializes)
    if initializes and 'train' in splits:
        for message in unseen_weights(cfg.get('model')):
            warn_once(message)
        if not cfg.get('load_from') and not cfg.get('resume'):
            for message in frozen_from_scratch(cfg.get('model')):
                warn_once(message)
    if args.check and not torch.cuda.is_available():
        print(f'no GPU found: {args.check} process(es) on the CPU, with {os.cpu_count()} cores', flush=True)
    if found:
        stop('\n\n'.join(found))
    args.data_warnings = _checked_data(cfg, splits) if on_first_rank() and not args.skip_data_check else []
    if not torch.cuda.is_available():
        fit_to_cpu(cfg)
    return cfg


def _checked_data(cfg, splits):
    """Stop if the data have errors; returns lines (str) of what is odd in them."""
    checks = check_data(cfg, splits, say=partial(print, flush=True))
    errors = lines(checks, ERROR)
    if errors:
        listing = '\n'.join(f'  {line}' for line in errors)
        stop(
            f'the data are not what the config and its data sets read:\n{listing}\n'
            f'{command("check-data")} lists these and what is odd; --skip-data-check goes on as it is'
        )
    return lines(checks, WARNING)


class _PlainLoader(getattr(yaml, 'CSafeLoader', yaml.SafeLoader)):
    """YAML of plain values, and the tuples of the configs that mmengine dumps."""


_PlainLoader.add_constructor(
    'tag:yaml.org,2002:python/tuple', lambda loader, node: tuple(loader.construct_sequence(node, deep=True))
)


# What else to say of an error, by a part of what it says itself
_HINTS = {
    'Duplicate key': "two files of _base_ set these. If a parent of yours has one of mmnorm's small files already, "
    'leave that out: its variables are there, as _base_.live_norm',
    'U+FEFF': 'save it as UTF-8 without a byte order mark',
    'BOM': 'save it as UTF-8 without a byte order mark',
    'UnicodeDecodeError': 'save it as UTF-8',
    'RecursionError': 'it is nested too deeply, or _base_ leads back to it',
    'MemoryError': 'it is nested too deeply',
    "no attribute 'get'": 'at its top, names have values',
    "no attribute 'startswith'": '_base_ is the path of a file, or a list of such',
    'SystemExit': 'it ends the process that reads it',
}


def parse_config(path):
    """Read a config file; FileNotFoundError if there is none, ValueError, with what went wrong, if it cannot be read.

    YAML that this process reads from then on is plain data: mmengine's loader would call what a tag names.
    """
    yaml_handler.Loader = _PlainLoader
    check_file(path, 'config')
    try:
        return Config.fromfile(path)
    except yaml.constructor.ConstructorError as error:
        what = str(error.problem).rpartition(' the tag ')[2].replace('tag:yaml.org,2002:', '')
        raise ValueError(
            f'{path} cannot be read as a config: YAML with the tag {what} is not plain data, and nothing else is taken '
            'from it; what has to be computed belongs into a config in Python'
        ) from error
    except (Exception, SystemExit) as error:  # a config is a program, so anything may come
        hint = next((f' ({hint})' for sign, hint in _HINTS.items() if sign in f'{type(error).__name__}: {error}'), '')
        reason = str(error).partition(', the current sys.path')[0]
        raise ValueError(f'{path} cannot be read as a config: {type(error).__name__}: {reason}{hint}') from error


def stop(message):
    """End the process with a message for the user, and status 2 where a command of ours runs."""
    raise SystemExit(f'error: {message}')


def fit_to_cpu(cfg):
    """Make a config run where there is no GPU: DDP without devices, SyncBN as BN. Changed in place."""
    if cfg.launcher != 'none':
        wrapper = dict(find_unused_parameters=cfg.get('find_unused_parameters', False), broadcast_buffers=False)
        wrapper.update(cfg.get('model_wrapper_cfg') or {})
        cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
    replaced = replace_norm_types(cfg.model, SYNC_TYPES)
    if cfg.pop('sync_bn', None) or replaced:
        warn_once('SyncBN needs GPUs: on this machine it is replaced by BN, with the statistics of each process alone')
