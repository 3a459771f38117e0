"""What can be known to go wrong before training starts: missing data, missing weights, missing GPUs."""

import os
import re
from pathlib import Path

import torch
from mmengine.registry import MODELS, init_default_scope

from mmnorm.openmmlab.configs import dicts
from mmnorm.openmmlab.pretrained import describe_misfit, loads_in_a_way_of_its_own, place_of, pretrained_cfgs
from mmnorm.openmmlab.xbn import missing_pretrained, missing_pretrained_message
from mmnorm.terminal import command, config

from .checkpoint import read_checkpoint

# Names of the authors' files, by the norm that they are converted to; those of RBN differ from ours by shape alone
_OF_AUTHORS = {'SN': r'\bsn\d\.mean_weight$', 'IBN': r'\.IN\.weight$', 'RBN': r'\.scale_bias$'}


def problems(cfg, num_processes, splits, initializes=True):
    """List what keeps a config from running.

    Args:
        cfg (Config): Of mmdet, mmseg or mmpretrain.
        num_processes (int): Processes on this machine.
        splits (tuple[str]): Which of 'train', 'val', 'test' the run reads.
        initializes (bool): Whether a run that reads 'train' loads pretrained weights.

    Returns:
        list[str]: A message for each problem, with what to do; empty if there is none.
    """
    found = []
    gpus = torch.cuda.device_count()
    if 0 < gpus < num_processes:
        found.append(
            f'{num_processes} processes need as many GPUs, but there are {gpus}: use at most {gpus}. With '
            'auto_scale_lr = dict(enable=True) the learning rate follows the batch size.'
        )
    missing = [path for split in splits for path in missing_data(cfg.get(f'{split}_dataloader'))]
    if missing:
        task = 'pspnet_xbn_r50' if cfg.get('default_scope') == 'mmseg' else 'mask_rcnn_xbn_r50'
        listing = '\n'.join(f'  {path}' for path in dict.fromkeys(missing))
        found.append(
            f'the data set is missing. These are expected, relative to {Path.cwd()}:\n{listing}\n'
            f'Put or link them there, or set data_root. To try without this data: '
            f'{command("digits")} makes the embedded data set, and {config(f"{task}_digits.py")} trains on it'
        )
    if initializes and 'train' in splits:  # also when it resumes: mmengine initializes first
        found += missing_weights(cfg.get('model'))
        found += unfit_weights(cfg)
    return found


def missing_data(dataloader):
    """Files and folders that a dataloader's data sets name and that do not exist.

    Args:
        dataloader (dict or None): As in a config; data sets may be wrapped (RepeatDataset, ConcatDataset ...).

    Returns:
        list[str]: Paths as the data set would open them.
    """
    missing = []
    for dataset in dicts(dict(dataloader or {}).get('dataset'), 'type'):
        if dataset.get('backend_args'):
            continue  # not on this machine's disk
        prefix = dataset.get('data_prefix') or {}
        if not prefix and str(dataset['type']).rpartition('.')[2] in ('ImageNet', 'ImageNet21k'):
            prefix = dataset.get('split') or {}  # the folder's name, too
        names = [dataset.get('ann_file'), *([prefix] if isinstance(prefix, str) else prefix.values())]
        paths = [os.path.join(dataset.get('data_root') or '', name) for name in names if isinstance(name, str) and name]
        missing += [path for path in paths if '://' not in path and not os.path.exists(path)]
    return missing


def missing_weights(model):
    """Messages for the pretrained weights of a model config that this machine cannot load."""
    messages = []
    for name in _pretrained(model):
        try:
            place_of(name)
        except ValueError as error:  # a name that mmengine does not know
            messages.append(f'{error}. Give init_cfg one of these, an address or a file.')
        except ImportError as error:
            messages.append(
                f'{name} needs torchvision, which cannot be imported ({error}): install the one that fits your '
                'PyTorch, or give init_cfg a file of these weights.'
            )
    for module in dicts(model, 'type'):
        path = missing_pretrained(module.get('init_cfg') or dict(checkpoint=module.get('pretrained') or ''))
        if path:
            kind = module['type']  # a name, or in mmengine's newer configs the class
            messages.append(missing_pretrained_message(getattr(kind, '__name__', kind), path, _pretrain(path)))
    for name in _pretrained(model):
        norm = _of_authors(_weights_of(name))
        if norm:
            messages.append(
                f"{name} is in the layout of {norm}'s authors, and its norms would not be "
                f'loaded: convert it with {command("convert")} SOURCE OUT --to {norm}'
            )
    seen = {}
    for message in messages:
        seen.setdefault(message.partition(': ')[2] or message, message)  # a C4 head starts from the backbone's file
    return list(seen.values())


def unseen_weights(model):
    """Sentences (list[str]) on the pretrained weights of a model config that are not on this machine yet."""
    return [
        f'{name} is not on this machine: it is read when the training starts, and whether the network can start from '
        'it is not known before'
        for name in _pretrained(model)
        if '://' in name and _file_of(name) is None
    ]


def unfit_weights(cfg):
    """Messages for the pretrained weights on this machine that are those of another backbone than a config's."""
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    return [
        f'{name} is not what {misfit}. Give init_cfg weights that were trained with this backbone, or give the '
        f'backbone the depth, width and xbn of the weights. {command("publish")} CHECKPOINT --only backbone takes '
        'those of a classifier or detector out of it'
        for module in dicts(cfg.get('model'), 'type')
        for name, misfit in _misfits(module)
    ]


def _misfits(module):
    """Names of weights that a part of a model starts from, and what cannot start from them and why (tuples of str).

    Nothing where they are of a whole detector, which may have other classes, or where what is wrong is told elsewhere.
    """
    if isinstance(module.get('pretrained'), str) and isinstance(module.get('backbone'), dict):  # as mmseg's segmentors
        module = dict(module['backbone'], pretrained=module['pretrained'])
    if 'backbone' in module or not any(map(_file_of, _pretrained([module]))):
        return
    try:
        with torch.device('meta'):
            part = MODELS.build(dict(module))
        if loads_in_a_way_of_its_own(part):
            return
        init_cfgs = pretrained_cfgs(part.init_cfg)
    except Exception:  # of a class of the host's or the user's: what is wrong with it is told by the training
        return
    for init_cfg in init_cfgs:
        weights, prefix = _weights_of(str(init_cfg['checkpoint'])), init_cfg.get('prefix') or ''
        if not weights or _of_authors(weights):
            continue
        prefix = prefix and f'{prefix.rstrip(".")}.'
        weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        misfit = weights and describe_misfit(part, weights)
        if misfit:
            yield init_cfg['checkpoint'], f'{type(part).__name__} can start from: {misfit}'


def _pretrain(path):
    """The command (str) that makes the weights that a row of the zoo looks for at a path; '' if there is none."""
    from mmnorm.zoo.rows import load_zoo  # here and not above: what checks the zoo imports this package

    rows = (row for row in load_zoo().values() if row.pretrained.get('From') and row.pretrained['File'] == path)
    row = next(rows, None)
    return f'{command("pretrain")} {row.name}' if row else ''


def frozen_from_scratch(model):
    """A message if a model config has norms whose statistics stay as loaded, and nothing to load; else none."""
    norms = [cfg['norm_cfg'] for cfg in dicts(model, 'norm_cfg') if isinstance(cfg['norm_cfg'], dict)]
    frozen = dict.fromkeys(cfg['type'] for cfg in norms if cfg.get('type') == 'FrozenBN' or cfg.get('frozen'))
    if (
        not frozen
        or any(cfg['checkpoint'] for cfg in dicts(model, 'checkpoint'))
        or any(cfg['pretrained'] for cfg in dicts(model, 'pretrained'))
    ):
        return []
    return [
        f'{", ".join(map(str, frozen))} keeps the statistics it is loaded with, but this model starts without '
        'weights: they would stay 0 and 1. Give init_cfg a checkpoint, or let the norms train: '
        f"norm_cfg=dict(type='BN') beside {config('_base_/scratch_norm.py')}, and without frozen=True."
    ]


def _of_authors(weights):
    """The norm (str) in whose authors' layout weights (dict) are; None if in none."""
    return next(
        (
            norm
            for norm, name in _OF_AUTHORS.items()
            for key, value in weights.items()
            if re.search(name, key) and (norm != 'RBN' or value.dim() > 1)
        ),
        None,
    )


def _pretrained(model):
    """The names (list[str]) of the checkpoints that parts of a model config are initialized from."""
    named = [part.get(key) for key in ('checkpoint', 'pretrained') for part in dicts(model, key)]
    return [name for name in named if name and isinstance(name, str)]


def _file_of(name):
    """The file (Path) of a checkpoint of this name on this machine; None if there is none."""
    try:
        place = place_of(name)
    except (ValueError, ImportError):
        return None
    return place if place and place.is_file() else None


def _weights_of(name):
    """The tensors (dict) of a checkpoint by name; {} if it cannot be read, which is told by what loads it."""
    path = _file_of(name)
    try:
        loaded = read_checkpoint(path) if path else {}
    except ValueError:
        return {}
    weights = loaded.get('state_dict', loaded.get('model', loaded)) if isinstance(loaded, dict) else {}
    weights = {str(key).removeprefix('module.'): value for key, value in weights.items() if torch.is_tensor(value)}
    if name.startswith('mmcls://'):  # of which mmengine takes the backbone
        weights = {key.removeprefix('backbone.'): weights[key] for key in weights if key.startswith('backbone.')}
    return weights
