"""A config, as tools/train.py and tools/test.py run it."""
import os
from pathlib import Path

import torch
from mmengine.config import Config, DictAction

from mmnorm.norms.checks import warn_once
from mmnorm.openmmlab.configs import SYNC_TYPES, replace_norm_types

from .preflight import frozen_from_scratch, problems
from .processes import on_first_rank


class Options(DictAction):
    """mmengine's ``--cfg-options``, which tells the user of an argument that is not KEY=VALUE."""

    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            if '=' not in value:
                parser.error(f'{option_string}: {value} is not KEY=VALUE, as in train_cfg.max_epochs=2')
        super().__call__(parser, namespace, values, option_string)


def add_common_arguments(parser):
    """Add the arguments that training and testing share."""
    parser.add_argument('config', help='config file of mmdet or mmseg')
    parser.add_argument('--work-dir', help='folder for logs, checkpoints and results; default work_dirs/CONFIG_NAME')
    parser.add_argument(
        '--cfg-options', nargs='+', action=Options, metavar='KEY=VALUE',
        help='override config values, e.g. train_cfg.max_epochs=2 model.backbone.depth=101')
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
        help='how the processes were started; tools/dist_*.sh and tools/slurm_*.sh set it')
    parser.add_argument(
        '--check', type=int, metavar='NUM_PROCESSES',
        help='only say what is missing to run CONFIG in so many processes, and exit')
    parser.add_argument('--local_rank', '--local-rank', type=int, help='set by launchers; not used')


def load_config(args, splits, initialises=True):
    """Read the config of a tool's arguments, fit it to this machine, and stop if something that it needs is missing.

    Args:
        args (Namespace): From a parser with :func:`add_common_arguments`.
        splits (tuple[str]): Which of 'train', 'val', 'test' the tool reads.
        initialises (bool): Whether a tool that reads 'train' loads pretrained weights.

    Returns:
        Config: With ``work_dir`` and ``launcher`` set.

    Raises:
        SystemExit: With one message for the user, on the first rank.
    """
    try:
        cfg = parse_config(args.config)
    except ValueError as error:
        stop(error)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(args.config).stem))
    cfg.launcher = args.launcher
    found = problems(cfg, args.check or 1, splits, initialises)
    if initialises and 'train' in splits and not cfg.get('load_from') and not cfg.get('resume'):
        for message in frozen_from_scratch(cfg.get('model')):
            warn_once(message)
    if args.check and not torch.cuda.is_available():
        print(f'no GPU found: {args.check} process(es) on the CPU, with {os.cpu_count()} cores', flush=True)
    if found:
        stop('\n\n'.join(found))
    if not torch.cuda.is_available():
        fit_to_cpu(cfg)
    return cfg


def parse_config(path):
    """Read a config file; ValueError, with what went wrong, if it cannot be read."""
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is a program, so anything may come
        hint = ''
        if 'Duplicate key' in str(error):
            hint = (' (two files of _base_ set these. If a parent of yours has one of mmnorm\'s small files already, '
                    'leave that out: its variables are there, as _base_.live_norm)')
        raise ValueError(f'{path} cannot be read as a config: {type(error).__name__}: {error}{hint}') from error


def stop(message):
    """End the process with a message for the user; only the first rank prints it."""
    raise SystemExit(f'error: {message}' if on_first_rank() else 1)


def fit_to_cpu(cfg):
    """Make a config run where there is no GPU: DDP without devices, SyncBN as BN. Changed in place."""
    if cfg.launcher != 'none':
        wrapper = dict(find_unused_parameters=cfg.get('find_unused_parameters', False), broadcast_buffers=False)
        wrapper.update(cfg.get('model_wrapper_cfg') or {})
        cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
    replaced = replace_norm_types(cfg.model, SYNC_TYPES)
    if cfg.pop('sync_bn', None) or replaced:
        warn_once('SyncBN needs GPUs: on this machine it is replaced by BN, with the statistics of each process alone')
