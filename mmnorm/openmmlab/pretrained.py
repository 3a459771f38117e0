"""Initialization of networks from checkpoints, and whether these are of such networks."""

import copy
import re

from mmengine.model import PretrainedInit

from mmnorm.blocks import list_norms, norm_layers


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
    """The number of blocks by stage: 6 by 'layer3' for names up to layer3.5.bn1.weight."""
    found = {}
    for stage, block in re.findall(r'^(\w+)\.(\d+)\.', '\n'.join(names), re.MULTILINE):
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
