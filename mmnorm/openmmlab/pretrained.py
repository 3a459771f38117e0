"""Initialization of networks from checkpoints: where these are, and whether they are of such networks."""

import copy
import functools
import re
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.model import PretrainedInit
from mmengine.runner import checkpoint as mmengine_checkpoint

from mmnorm.blocks import list_norms, norm_layers

#: mmengine's names of weights, by what stands before ://, and where it has the addresses
_LISTS = {
    'torchvision': 'torchvision',
    'modelzoo': 'torchvision',
    'open-mmlab': 'external',
    'openmmlab': 'external',
    'mmcls': 'mmcls',
}


class PretrainedWithoutNorms(PretrainedInit):
    """mmengine's 'Pretrained' that leaves norm layers as they are, statistics and affine (evalnorm, Table 2 (b)).

        init_cfg=dict(type='PretrainedWithoutNorms', checkpoint='torchvision://resnet50')

    Args:
        checkpoint, prefix, map_location: As for mmengine's 'Pretrained'.
    """

    def __call__(self, module):
        norms = list(norm_layers(module).values())
        states = [copy.deepcopy(layer.state_dict()) for layer in norms]
        super().__call__(module)
        for layer, state in zip(norms, states):
            layer.load_state_dict(state)


def pretrained_cfgs(init_cfg):
    """Those dicts (list) of an ``init_cfg`` (dict, list[dict] or None), of mmengine, that load a checkpoint."""
    cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg or {}]
    return [cfg for cfg in cfgs if cfg.get('checkpoint')]


def place_of(checkpoint):
    """Where mmengine finds a checkpoint of a config.

    Args:
        checkpoint (str): A path, an address, or a name in one of mmengine's lists, as torchvision://resnet50.

    Returns:
        Path or None: The file, which need not be there: of what is downloaded the place in PyTorch's cache. None if it
        is in a store that keeps nothing on this machine (s3:// ...).

    Raises:
        ValueError: It is a name that is not in its list.
        ImportError: Its list is torchvision's, which cannot be imported.
    """
    scheme, is_address, name = checkpoint.partition('://')
    if not is_address:
        return Path(checkpoint).expanduser()
    address = checkpoint
    if scheme in _LISTS:
        names = _listed(scheme)
        if name not in names:
            raise ValueError(f'{checkpoint} is none of the {len(names)} weights that mmengine knows as {scheme}://')
        address = names[name]
        if '://' not in address:  # of the user's own list
            return Path(mmengine_checkpoint._get_mmengine_home(), address)
    if not address.startswith(('http://', 'https://')):
        return None
    return Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(address).path).name)


@functools.cache
def _listed(scheme):
    """The addresses (dict[str, str]) of mmengine's names for weights."""
    try:
        names = getattr(mmengine_checkpoint, f'get_{_LISTS[scheme]}_models')()
    except Exception as error:  # torchvision that is for another PyTorch ends its import by a RuntimeError
        raise ImportError(str(error)) from error
    if _LISTS[scheme] == 'external':
        renamed = mmengine_checkpoint.get_deprecated_model_names()
        names |= {old: names[new] for old, new in renamed.items() if new in names}
    return names


def loads_in_a_way_of_its_own(network):
    """Whether a network's class reads its weights itself, or changes them first, as those of many transformers do."""
    functions = [vars(kind)['init_weights'] for kind in type(network).__mro__ if 'init_weights' in vars(kind)]
    called = {name for function in functions for name in function.__code__.co_names}
    return bool(called & {'load_checkpoint', '_load_checkpoint'}) or any(
        module._load_state_dict_pre_hooks for module in network.modules()
    )


def describe_misfit(backbone, weights):
    """Say how weights are those of another backbone (str; '' if not): mmengine would load what fits, and go on.

    As :func:`describe_other_size`; and BNs that stay as they are loaded are where the weights have BNs.

    Args:
        backbone (nn.Module): On any device, the meta device too.
        weights (dict[str, Tensor]): As the backbone would load them.
    """
    return describe_other_size(backbone, weights) or _describe_other_places(backbone, weights)


def describe_other_size(backbone, weights):
    """Say how weights are those of a backbone of other names, depth or width (str; '' if not).

    Heads and whole stages that only one of them has are no difference, nor is one layer of other input channels.

    Args:
        backbone (nn.Module): On any device, the meta device too.
        weights (dict[str, Tensor]): As the backbone would load them.
    """
    own = backbone.state_dict()
    shared = [key for key in own if key in weights]
    if not shared:
        below = next((key.partition('.')[0] + '.' for key in weights if key.partition('.')[2] in own), '')
        hint = f', but those below {below!r} are: give init_cfg prefix={below!r}' if below else ''
        return f'none of its names is one of the backbone{hint}'
    other = [key for key in shared if own[key].shape != weights[key].shape]
    if len({key.rpartition('.')[0] for key in other}) > 1:
        there, here = (tuple(of[other[0]].shape) for of in (weights, own))
        return f'{len(other)} of its tensors have another shape, as {other[0]}: {there}, and {here} in the backbone'
    theirs, ours = _blocks(weights), _blocks(own)
    for stage in ours:
        if ours[stage] != theirs.get(stage, ours[stage]):
            return f'its {stage} has {theirs[stage]} blocks, that of the backbone {ours[stage]}'
    return ''


def _blocks(names):
    """The number of blocks by stage: 6 by 'layer3' for names up to layer3.5.bn1.weight; layers are no blocks."""
    found = {}
    for stage, block in re.findall(r'^(\w+)\.(\d+)\.\w+\.', '\n'.join(names), re.MULTILINE):
        found[stage] = max(found.get(stage, 0), int(block) + 1)
    return found


def _describe_other_places(backbone, weights):
    """Say where a backbone with BNs that stay as loaded has these elsewhere than the network of the weights."""
    mode = backbone.training
    backbone.train()
    states = {layer.name: layer.state for layer in list_norms(backbone)}
    backbone.train(mode)
    held = [
        name
        for name, layer in norm_layers(backbone).items()
        if getattr(layer, 'running_mean', None) is not None and states.get(name) in ('fixed', 'held')
    ]
    if not held:
        return ''
    without = [name for name in held if f'{name}.weight' in weights and f'{name}.running_mean' not in weights]
    there = [name for name in getattr(backbone, 'xbn_layers', ()) if f'{name}.running_mean' in weights]
    for places, theirs, ours in ((without, 'batch-free norms', 'BN'), (there, 'BN', 'batch-free norms')):
        if places:
            return (
                f'it has {theirs} in {len(places)} places where the backbone has {ours}, as {places[0]}, and the BNs '
                'of the backbone stay as they are loaded: they would normalize what they never saw'
            )
    return ''
