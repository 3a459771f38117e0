"""Model configs as trees of dicts: walked, changed, and that of a network whose BNs became EN."""

import copy
from collections.abc import Iterator

from mmnorm.blocks import list_norms, registered_name
from mmnorm.norms import EN
from mmnorm.statistics import unwrapped

#: Types in a norm_cfg, and what they are without synchronization.
SYNC_TYPES = {'SyncBN': 'BN', 'MMSyncBN': 'BN', 'NaiveSyncBN': 'BN'}
#: What BN layers of a built network are called.
BN_LAYERS = ('BN', 'BatchNorm1d', 'BatchNorm3d', *SYNC_TYPES)
_BN_TYPES = ('BN', 'BN1d', 'BN2d', 'BN3d', 'BatchNorm1d', 'BatchNorm3d')
_EVALNORM_TYPES = {**dict.fromkeys(_BN_TYPES, 'EN'), **dict.fromkeys(SYNC_TYPES, 'SyncEN')}


def dicts(tree, key: str | None = None) -> Iterator[dict]:
    """Every dict of a config tree, from the outside in; with ``key``, every one that has it."""
    if isinstance(tree, dict):
        if key is None or key in tree:
            yield tree
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        for branch in tree:
            yield from dicts(branch, key)


def placed_dicts(tree, place: str) -> Iterator[tuple[str, dict]]:
    """Every dict of a config tree with its key, which begins with a place, from the outside in."""
    if isinstance(tree, dict):
        yield place, tree
    branches = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    for key, branch in branches:
        yield from placed_dicts(branch, f'{place}.{key}')


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
        part, layer = config_of(cfg.model, name), layers[name]
        part.setdefault('norm_cfg', dict(type='EN', eps=layer.eps, momentum=layer.momentum, mode='offline'))
    try:
        twin = build(copy.deepcopy(cfg.model))  # a copy, because detectors and segmentors change what they are given
    except TypeError as error:
        raise ValueError(
            f'a part of the network does not take norm_cfg, so no config can make its BNs EN: {error}'
        ) from error
    left = _still_bn(twin, layers)
    if left:
        raise ValueError(
            f'{len(left)} layers are BN in the code of their classes; first: {left[0]}. No norm_cfg '
            'reaches them, so no config can make them EN'
        )
    twin.load_state_dict(unwrapped(model).state_dict())
    return cfg, twin


def _still_bn(model, names):
    return [name for name in names if not isinstance(model.get_submodule(name), EN)]


def config_of(tree, name):
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

    What a synchronized BN alone knows goes: the ranks that it is over become those of a replacement that synchronizes
    too, and mmcv's ``stats_mode`` has no meaning for others (ours weigh ranks by what they hold).

    Args:
        tree (dict or list): Such as the model's config.
        types (dict[str, str]): Type to its replacement. Classes, which new-style configs have, go by their names.
        **arguments: Of the replacement.

    Returns:
        int: How many there were.
    """
    found = [part for part in dicts(tree, 'type') if _type_of(part) in types]
    for part in found:
        kind = _type_of(part)
        if kind in SYNC_TYPES:
            part.pop('stats_mode', None)
            groups = part.pop('process_group', None), part.pop('group', None)  # torch's name and mmcv's
            group = next((group for group in groups if group is not None), None)
            if group is not None and types[kind].startswith('Sync'):
                part['process_group'] = group
        part.update(arguments, type=types[kind])
    return len(found)


def _type_of(cfg):
    kind = cfg['type']
    return registered_name(kind) if isinstance(kind, (str, type)) else kind


def describe_unreplaced(cfg, network) -> str:
    """Say which BNs a network has that its norm_cfg did not replace, because a part does not take it.

    Args:
        cfg (dict): The model's config.
        network (nn.Module): What was built of it.

    Returns:
        str: One sentence; '' where no norm_cfg names another norm than BN, or every BN is one that the config names.
            XBN backbones keep BNs by design.
    """
    chosen = dict.fromkeys(_type_of(part['norm_cfg']) for part in dicts(cfg, 'norm_cfg') if _names_other_norm(part))
    if not chosen:
        return ''
    by_design = tuple(f'{name}.' for name, module in network.named_modules() if hasattr(module, 'xbn_layers'))
    left = {}
    for layer in list_norms(network):
        is_bn = layer.type in BN_LAYERS
        part = config_of(cfg, layer.name)
        named = 'norm_cfg' in part and not _names_other_norm(part)
        if is_bn and not named and not layer.name.startswith(by_design):
            left.setdefault(str(part.get('type', 'the model')), []).append(layer.name)
    if not left:
        return ''
    parts = '; '.join(f'{len(names)} of {kind} ({names[0]}{" ..." * (len(names) > 1)})' for kind, names in left.items())
    return (
        f'norm_cfg names {", ".join(map(str, chosen))}, but these are still BN: {parts}. Set norm_cfg in '
        'these parts; one that does not take it is BN in its code, and mmnorm.replace_norms replaces it '
        'in a built network'
    )


def _names_other_norm(part):
    cfg = part.get('norm_cfg')
    if isinstance(cfg, dict) and 'type' in cfg and _type_of(cfg) == 'PerLevel':
        cfg = cfg.get('norm')
    return isinstance(cfg, dict) and 'type' in cfg and _type_of(cfg) not in _EVALNORM_TYPES


def _as_list(value):
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
