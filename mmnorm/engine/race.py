"""Races: short trainings of one config that differ in their norms, batch sizes and seeds, by one recipe.

What stays the same over batch sizes is the number of images that are seen: schedules count epochs, or iterations that
are more where batches are smaller, and all that they set out stands at the same share of the training.
"""

import ast
import copy
import math
import re
from dataclasses import dataclass

from mmengine.registry import MODELS, init_default_scope
from torch.nn.modules.batchnorm import _BatchNorm

from mmnorm.blocks import GN64, list_norms
from mmnorm.openmmlab.configs import BN_LAYERS, config_of

from .networks import build_network

AS_IS = 'as-is'
_BNS = (*BN_LAYERS, 'FrozenBN')
# Arguments of XBN's placement; its norm has the others
_OF_PLACEMENT = ('position', 'every', 'stem', 'scope', 'counted')
_POSITIONS = ('begin', 'end', 'T_max', 'total_steps', 'step_size', 'milestones', 'periods', 'restarts')
_POWERS = {'linear': 1.0, 'sqrt': 0.5, 'none': 0.0}


@dataclass(frozen=True)
class Start:
    """One training of a race.

    Attributes:
        norm: As :func:`with_norm` takes it.
        batch_size: Images of a process in a step.
        seed: Of the training.
    """

    norm: str
    batch_size: int
    seed: int

    @property
    def name(self):
        """Of its folder: letters, digits, and what is between them."""
        return f'{re.sub("[^A-Za-z0-9]+", "-", self.norm)}_b{self.batch_size}_seed{self.seed}'


def racing_config(cfg, start, processes, length, lr_scaling):
    """The config of one training of a race.

    Args:
        cfg (Config): What the race is of, with the norm of this training (:func:`with_norm`).
        start (Start): Which training.
        processes (int): Of the training.
        length (float): The share of the config's schedule that is trained, above 0.
        lr_scaling (str): How the learning rate follows the number of images in a step: 'linear', 'sqrt' or 'none'.

    Returns:
        Config: A copy, which is evaluated at its end.

    Raises:
        ValueError: The config has no such schedule, learning rate or batch size.
    """
    cfg = copy.deepcopy(cfg)
    share = start.batch_size * processes / usual_batch(cfg, processes)
    cfg.train_dataloader.batch_size = start.batch_size
    _scale_learning_rate(cfg, share ** _POWERS[lr_scaling])
    _set_schedule(cfg, length, share)
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=start.seed)
    imports = dict(cfg.get('custom_imports') or dict(imports=[], allow_failed_imports=False))
    imports['imports'] = list(dict.fromkeys([*imports['imports'], 'mmnorm']))
    cfg.custom_imports = imports
    return cfg


def usual_batch(cfg, processes):
    """Images of all processes in a step of a config as it is meant to be trained, by so many processes if it says."""
    stated = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    own = cfg.train_dataloader.get('batch_size')
    if not own:
        raise ValueError('train_dataloader has no batch_size, which a race sets')
    return stated or own * processes


def parse_norm(text):
    """Read ``NAME:KEY=VALUE,KEY=VALUE``.

    Args:
        text (str): The values are literals of Python, or words.

    Returns:
        tuple[str, dict]: The name, and its arguments.
    """
    name, _, rest = text.partition(':')
    arguments = {}
    for part in rest.split(',') if rest else ():
        key, equals, value = part.partition('=')
        if not (name and equals and key.isidentifier()):
            raise ValueError(f'{text}: write arguments of a norm as in GN:num_groups=16 or XBN:position=1,num_groups=8')
        try:
            arguments[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            arguments[key] = value
    return name, arguments


def with_norm(cfg, text):
    """A config with another norm where it has BN, live or fixed, and nowhere else.

    These norms train then, in all stages. Norms that are something else in the config, as GN in some heads, stay.

    Args:
        cfg (Config): Of mmdet, mmseg or mmpretrain.
        text (str): A norm as :func:`parse_norm` reads it: the name of one that is registered, such as 'SN' or 'GN'
            (by default of 32 groups); 'XBN' for BN and the backbone's XBN twin, with arguments of its placement and of
            its GN; 'as-is' to change nothing.

    Returns:
        Config: A copy.

    Raises:
        ValueError: There is no such norm, the network cannot be built with it, or has no BN that a config reaches.
    """
    name, arguments = parse_norm(text)
    cfg = copy.deepcopy(cfg)
    if name == AS_IS:
        return cfg
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    network, model = build_network(cfg), cfg.model
    parts = [config_of(model, layer.name) for layer in list_norms(network) if layer.type in _BNS]
    if not parts:
        raise ValueError('the network has no BN that a race could replace')
    for part in {id(part): part for part in parts}.values():
        part['norm_cfg'] = _norm_cfg('BN' if name == 'XBN' else name, {} if name == 'XBN' else arguments, part)
    for place, module in network.named_modules():
        if getattr(module, 'norm_eval', False) is True:
            part = config_of(model, place)
            part['norm_eval'] = False
            if getattr(module, 'frozen_stages', -1) != -1:
                part['frozen_stages'] = -1
    _place_xbn(model, name == 'XBN', arguments)
    try:
        raced = build_network(cfg)
    except Exception as error:  # whatever constructors raise
        raise ValueError(f'{text}: the network cannot be built with it: {error}') from error
    left = [layer.name for layer in list_norms(raced) if layer.type in _BNS]
    if name not in (*_BNS, 'XBN') and left:
        raise ValueError(f'{text}: {len(left)} BNs stay what they are ({left[0]}), as their part takes no norm_cfg')
    return cfg


def _norm_cfg(name, arguments, part):
    """The norm_cfg of a part of the network, with what is not a matter of the norm: eps, and BN's momentum."""
    kind = MODELS.get(name)
    if kind is None:
        raise ValueError(f'no norm is registered as {name}')
    kept = ('eps', 'momentum') if issubclass(kind, _BatchNorm) else ('eps',)
    before = part.get('norm_cfg') or {}
    defaults = {key: before[key] for key in kept if key in before} | ({'num_groups': 32} if name == 'GN' else {})
    return dict(type=name, requires_grad=True) | defaults | arguments


def _place_xbn(model, wanted, arguments):
    """Make a config's backbone its XBN twin, or what that is a twin of."""
    backbone = model.get('backbone')
    kind = str((backbone or {}).get('type', ''))
    if not wanted:
        if kind.startswith('XBN'):
            backbone['type'] = kind.removeprefix('XBN')
            backbone.pop('xbn', None)
        return
    if not kind:
        raise ValueError('XBN: the model has no backbone')
    backbone['type'] = kind if kind.startswith('XBN') else f'XBN{kind}'
    of_norm = {key: value for key, value in arguments.items() if key not in _OF_PLACEMENT}
    xbn = dict(backbone.get('xbn') or {}, **{key: arguments[key] for key in arguments if key in _OF_PLACEMENT})
    if of_norm:
        xbn['norm_cfg'] = dict(xbn.get('norm_cfg') or GN64, **of_norm)
    if xbn:
        backbone['xbn'] = xbn


def _scale_learning_rate(cfg, factor):
    if cfg.get('auto_scale_lr'):
        cfg.auto_scale_lr.enable = False
    if factor == 1:
        return
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer')
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get('lr'), (int, float)):
        raise ValueError(
            'optim_wrapper.optimizer has no lr that could follow the batch size; --lr-scaling none leaves it as it is'
        )
    optimizer['lr'] *= factor


def _set_schedule(cfg, length, share):
    """Train a share of the schedule with steps of so many times the images that it is for, and evaluate at its end."""
    train = cfg.get('train_cfg') or {}
    by_epoch = 'max_epochs' in train
    total = train.get('max_epochs' if by_epoch else 'max_iters')
    if not total:
        raise ValueError('train_cfg has neither max_epochs nor max_iters, which a race sets')
    steps = max(1, round(total * length / (1 if by_epoch else share)))
    train['max_epochs' if by_epoch else 'max_iters'] = steps
    train.update(val_begin=1, val_interval=steps)
    train.pop('dynamic_intervals', None)
    of_epochs = steps / total if by_epoch else length
    factors = {True: of_epochs, False: of_epochs / share if by_epoch else steps / total}
    schedulers = cfg.get('param_scheduler') or []
    for scheduler in [schedulers] if isinstance(schedulers, dict) else schedulers:
        factor = factors[bool(scheduler.get('by_epoch', True))]
        for key in _POSITIONS:
            if scheduler.get(key) is not None:
                scheduler[key] = _moved(scheduler[key], factor, least=0 if key == 'begin' else 1)
        if scheduler.get('end') is not None:
            scheduler['end'] = max(scheduler['end'], scheduler.get('begin', 0) + 1)
    hooks = cfg.setdefault('default_hooks', {})
    for name, default, values in (
        ('checkpoint', 'CheckpointHook', dict(interval=1 if by_epoch else math.ceil(steps / 4), by_epoch=by_epoch)),
        ('logger', 'LoggerHook', dict(interval=10)),
    ):
        hooks[name] = dict(dict(type=default), **(hooks.get(name) or {}))
        hooks[name].update(values)
    hooks['checkpoint'].update(max_keep_ckpts=1)
    hooks['checkpoint'].pop('save_best', None)


def _moved(position, factor, least):
    if isinstance(position, (list, tuple)):
        return [_moved(one, factor, least) for one in position]
    # mmengine's "never ends" stays that
    return max(least, round(position * factor)) if position < 1e9 else position
