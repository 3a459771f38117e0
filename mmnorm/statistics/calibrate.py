"""EvalNorm on a finished network: its BNs become EN, and alpha and beta are set (paper evalnorm, Section 3.4)."""
import copy

import torch
from mmcv.cnn import ConvModule
from torch import nn

from mmnorm.norms import EN, SyncEN
from mmnorm.norms.base import PlaneNorm
from mmnorm.norms.modes import keeping_modes

from .collect import bn_layers, unwrapped

#: Types in a norm_cfg, and what they are without synchronisation.
SYNC_TYPES = {'SyncBN': 'BN', 'MMSyncBN': 'BN', 'NaiveSyncBN': 'BN'}
_EVALNORM_TYPES = {'BN': 'EN', 'BN1d': 'EN', 'BN2d': 'EN', 'BN3d': 'EN', **dict.fromkeys(SYNC_TYPES, 'SyncEN')}


def trained_by_batch(model):
    """Names of the BN-like layers that normalise by batch statistics when the network trains.

    norm_eval, frozen stages and frozen layers keep the others in evaluation mode then: those were trained with the
    running statistics that they have.

    Args:
        model (nn.Module): A network; its modes stay.

    Returns:
        list[str]: In the order of the network.

    Raises:
        ValueError: The network has no BN-like layer.
    """
    model = unwrapped(model)
    with keeping_modes(model):
        model.train()
        return [name for name, layer in bn_layers(model).items() if layer.training]


def to_evalnorm(model, names=None):
    """Replace BNs by EN of ``mode='offline'``, with their parameters and statistics; in place.

    They evaluate as BN until :func:`~mmnorm.norms.estimate_offline` has estimated alpha and beta.

    Args:
        model (nn.Module): A network.
        names (collection[str]): Layers to replace. Default None: those that training normalises by batch statistics,
            since the others have no batch size to correct for.

    Returns:
        list[str]: What was replaced; torch's and mmcv's BNs (synchronised ones by SyncEN), none of ours.

    Raises:
        ValueError: There is none to replace.
    """
    model = unwrapped(model)
    chosen = trained_by_batch(model) if names is None else names
    layers = {name: layer for name, layer in bn_layers(model).items()
              if name in chosen and not isinstance(layer, PlaneNorm)}
    if not layers:
        raise ValueError('no BN of this network is trained by batch statistics (norm_eval=True and frozen stages fix '
                         'them): EvalNorm has no normalization batch size to correct for')
    twins = {layer: _as_evalnorm(layer) for layer in layers.values()}
    for module in model.modules():
        if isinstance(module, ConvModule) and any(child in twins for child in module.children()):
            module.turn_on_efficient_conv_bn_eval(False)  # it would fold EN as BN
    for name, layer in list(model.named_modules(remove_duplicate=False)):  # one layer may have several names
        if layer in twins:
            parent, _, attribute = name.rpartition('.')
            setattr(model.get_submodule(parent), attribute, twins[layer])
    return list(layers)


def _as_evalnorm(layer):
    kind = SyncEN if isinstance(layer, nn.SyncBatchNorm) or 'Sync' in type(layer).__name__ else EN
    twin = kind(layer.num_features, layer.eps, layer.momentum, mode='offline').to(layer.running_mean)
    twin.load_state_dict(layer.state_dict(), strict=False)  # one without affine has weight 1 and bias 0
    for name, parameter in layer.named_parameters():
        setattr(twin, name, parameter)
    twin.training = layer.training
    return twin


@torch.no_grad()
def apply_rule(model, power=2):
    """Set alpha = beta = 1 / B^power in every EN layer that knows its normalization batch size B.

    Args:
        model (nn.Module): A network, such as :func:`~mmnorm.norms.estimate_offline` leaves; changed in place.
        power (int): 2 is evalnorm's rule of thumb, 1 its simple approximation (Figure 4, Table 1).

    Returns:
        dict[str, float]: Layer name to B.
    """
    sizes = {}
    for name, layer in model.named_modules():
        if isinstance(layer, EN) and layer.mean_batch_size > 0:
            sizes[name] = float(layer.mean_batch_size)
            for value in (layer.alpha, layer.beta):
                value.fill_(sizes[name] ** -power)
    return sizes


def evalnorm_config(cfg, model, build):
    """The config of a network that :func:`to_evalnorm` made, which loads wherever mmnorm is imported.

    Every norm_cfg of BN becomes EN's; a part that left norm_cfg at its default gets one. BNs that share a norm_cfg
    with others (frozen stages) become EN too, of unknown batch size: they evaluate as BN.

    Args:
        cfg (Config): Of the BN network.
        model (nn.Module): What to_evalnorm made of it.
        build (callable): ``model config -> nn.Module``.

    Returns:
        tuple[Config, nn.Module]: A copy, and the network that it builds, with the weights of ``model``.

    Raises:
        ValueError: A layer is BN in its class's code, which no norm_cfg reaches.
    """
    cfg = copy.deepcopy(cfg)
    imports = dict(cfg.get('custom_imports') or dict(imports=[], allow_failed_imports=False))
    imports['imports'] = list(dict.fromkeys([*_as_list(imports['imports']), 'mmnorm']))
    cfg.custom_imports = imports
    replace_norm_types(cfg.model, _EVALNORM_TYPES, mode='offline')
    layers = {name: layer for name, layer in unwrapped(model).named_modules() if isinstance(layer, EN)}
    for name in _still_bn(build(copy.deepcopy(cfg.model)), layers):
        part, layer = _config_of(cfg.model, name), layers[name]
        part.setdefault('norm_cfg', dict(type='EN', eps=layer.eps, momentum=layer.momentum, mode='offline'))
    try:
        twin = build(copy.deepcopy(cfg.model))  # a copy, because detectors and segmentors change what they are given
    except TypeError as error:
        raise ValueError(f'a part of the network does not take norm_cfg, so no config can make its BNs EN: {error}'
                         ) from error
    left = _still_bn(twin, layers)
    if left:
        raise ValueError(f'{len(left)} layers, {left[0]} the first, are BN in the code of their classes, which no '
                         'norm_cfg reaches: no config can make them EN')
    twin.load_state_dict(unwrapped(model).state_dict())
    return cfg, twin


def _still_bn(model, names):
    return [name for name in names if not isinstance(model.get_submodule(name), EN)]


def _config_of(tree, name):
    """The innermost module config on the way to a layer."""
    innermost = tree
    for step in name.split('.'):
        if isinstance(tree, (list, tuple)):
            tree = tree[int(step)] if step.isdigit() and int(step) < len(tree) else None
        else:
            tree = tree.get(step)
        if isinstance(tree, dict) and 'type' in tree:
            innermost = tree
        elif not isinstance(tree, (list, tuple)):
            break
    return innermost


def replace_norm_types(tree, types, **arguments):
    """Replace the type of every norm_cfg in a config tree, in place, and give it more arguments.

    Args:
        tree (dict or list): Such as the model's config.
        types (dict[str, str]): Type to its replacement.
        **arguments: Of the replacement.

    Returns:
        int: How many there were.
    """
    replaced = 0
    if isinstance(tree, dict):
        if tree.get('type') in types:
            tree.update(arguments, type=types[tree['type']])
            replaced = 1
        tree = list(tree.values())
    for branch in tree if isinstance(tree, (list, tuple)) else ():
        replaced += replace_norm_types(branch, types, **arguments)
    return replaced


def _as_list(value):
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
