"""The norm layers of a network: what is one, which there are, and how one is put in the place of another."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from mmnorm.norms import NORMS, BatchFreeNorm, PlaneNorm
from mmnorm.norms.base import freeze
from mmnorm.norms.checks import warn_once
from mmnorm.norms.groups import cut_channels

#: Other norms that a layer can be made of, by the names that configs call them.
TORCH_NORMS: dict[str, type[nn.Module]] = {
    'BN': nn.BatchNorm2d,
    'SyncBN': nn.SyncBatchNorm,
    'GN': nn.GroupNorm,
    'IN': nn.InstanceNorm2d,
}
_NAMES = {kind.__name__: name for name, kind in TORCH_NORMS.items()} | {'LayerNorm': 'LN'}


@dataclass(frozen=True)
class NormLayer:
    """A norm layer of a network.

    Attributes:
        name: Of the layer in the network.
        type: As a config calls it ('BN', 'SN', ...), else the name of its class.
        channels: Number of its channels.
        state: What it does in the mode that it is in: 'trains'; 'held', normalizing by running statistics while its
            parameters train; 'by batch', normalizing by the batch while nothing trains; or 'fixed', nothing changes.
    """

    name: str
    type: str
    channels: int
    state: str


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm layer: any of torch (BN, IN, GN, LN, synchronized), of ours, or a frozen BN."""
    return isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm)) or type(module).__name__.startswith(
        'FrozenBatchNorm'
    )


def norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The norm layers of a network by name, in its order; what lies inside of one is part of it."""
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if is_norm(module) and not any(name.startswith(f'{outer}.') for outer in layers):
            layers[name] = module
    return layers


def list_norms(model: nn.Module) -> list[NormLayer]:
    """Which norm layers a network has, and what each does in the mode that the network is in.

    Args:
        model (nn.Module): Any network; call ``model.train()`` before to see what its training does.

    Returns:
        list[NormLayer]: In the order of the network.
    """
    return [
        NormLayer(name, type_name(layer), channels_of(layer), state_of(layer))
        for name, layer in norm_layers(model).items()
    ]


def type_name(layer: nn.Module) -> str:
    """What a config calls a norm layer."""
    return registered_name(type(layer))


def registered_name(kind: type | str) -> str:
    """The name by which configs know a norm that they give as such, as a class, or by the class's dotted name."""
    name = kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__
    return _NAMES.get(name, name)


def channels_of(layer: nn.Module) -> int:
    """Number of channels of a norm layer."""
    for attribute in ('num_features', 'num_channels'):
        if hasattr(layer, attribute):
            return getattr(layer, attribute)
    return int(layer.normalized_shape[-1])  # type: ignore[index]  # of LayerNorm


def state_of(layer: nn.Module) -> str:
    """What a norm layer does; see :class:`NormLayer`."""
    parameters = list(layer.parameters())
    trains = any(parameter.requires_grad for parameter in parameters)
    if getattr(layer, 'running_mean', None) is None:
        return 'trains' if trains or not parameters else 'fixed'
    if layer.training and isinstance(layer, _NormBase) and not getattr(layer, 'frozen', False):
        return 'trains' if trains else 'by batch'
    return 'held' if trains else 'fixed'


def summarize_norms(model: nn.Module) -> str:
    """One line of the norms of a network: '53 BN (held), 8 GN'."""
    counts = Counter((layer.type, layer.state) for layer in list_norms(model))
    return (
        ', '.join(f'{count} {kind}' + f' ({state})' * (state != 'trains') for (kind, state), count in counts.items())
        or 'no norm layers'
    )


def is_conv_module(module: nn.Module) -> bool:
    """Whether a module is mmcv's ConvModule: a convolution, a norm and an activation under names of their own."""
    return all(hasattr(module, name) for name in ('conv', 'with_norm', 'norm_name', 'order'))


def set_layer(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a layer in the place of another, under every name that this has."""
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is old:
                if is_conv_module(parent) and hasattr(parent, 'turn_on_efficient_conv_bn_eval'):
                    # it would go on folding what was there
                    parent.turn_on_efficient_conv_bn_eval(False)  # type: ignore[operator]
                setattr(parent, key, new)


def build_norm(cfg: dict[str, Any], channels: int, where: str = '') -> nn.Module:
    """Build a norm layer.

    Args:
        cfg (dict): ``type``, a name of :data:`~mmnorm.norms.NORMS` or :data:`TORCH_NORMS`, and arguments of it.
            GN takes ``num_groups``, a number or 'auto', the default: the largest divisor of the channels up to
            ``max_groups`` (32); or ``channels_per_group``.
        channels (int): Number of channels.
        where (str): Name of the layer, for errors.

    Raises:
        ValueError: There is no such norm, an argument is out of range, or groups do not divide the channels.
        TypeError: An argument is unknown or of a wrong type.
    """
    with errors_naming(where):
        arguments = fit_groups(cfg, channels, 32)
        kind, trains = arguments.pop('type'), arguments.pop('requires_grad', True)
        if kind not in NORMS and kind not in TORCH_NORMS:
            raise ValueError(f'no norm is called {kind!r}; choose one of {", ".join((*NORMS, *TORCH_NORMS))}')
        norm = NORMS.get(kind) or TORCH_NORMS[kind]
        layer = norm(num_channels=channels, **arguments) if norm is nn.GroupNorm else norm(channels, **arguments)
    return layer if trains else layer.requires_grad_(False)


@contextlib.contextmanager
def errors_naming(where: str) -> Iterator[None]:
    """Have what is wrong with a norm's arguments say which layer of the network they are for."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f'{where}: {error}' if where else str(error)) from error


def fit_groups(cfg: dict[str, Any], channels: int, max_groups: int) -> dict[str, Any]:
    """A norm_cfg with GN's number of groups for so many channels; see :func:`build_norm`."""
    cfg = dict(cfg)
    if cfg['type'] in ('GN', nn.GroupNorm):
        groups, size = cfg.pop('num_groups', 'auto'), cfg.pop('channels_per_group', None)
        cfg['num_groups'] = cut_channels('GN', channels, groups, size, cfg.pop('max_groups', max_groups))
    return cfg


def replace_norms(
    model: nn.Module,
    norm: str,
    where: Callable[[str, nn.Module], bool] | str | Iterable[str] | None = None,
    **arguments: Any,
) -> list[str]:
    """Replace norm layers of a built network, with their parameters and statistics.

    Each new layer starts as a checkpoint of the old one would have it: gamma and beta stay, running statistics too
    where both have them, and RBN and BGN fold what they must. Modes, devices, types and ``requires_grad`` stay; an
    optimizer has to be made afterwards.

    Args:
        model (nn.Module): Any network; changed in place.
        norm (str): Name of the new norm: 'SN', 'RBN', 'GN' ...
        where (callable, str, iterable[str] or None): Which layers: ``where(name, layer) -> bool``, a pattern such as
            'backbone.*', or names. Default None: all plain BNs, torch's and mmcv's, synchronized or not.
        **arguments: Of the new norm, such as ``groups=2``. ``eps``, ``momentum`` and the ranks that a synchronized one
            is over are those of the old one.

    Returns:
        list[str]: Names of the replaced layers, in the order of the network.

    Raises:
        ValueError: No layer is chosen, or the norm does not fit one; the message names it.
    """
    chosen = choose_norms(model, where, is_plain_bn)
    if not chosen:
        found = ', '.join(dict.fromkeys(map(type_name, norm_layers(model).values()))) or 'none'
        wanted = 'plain BN' if where is None else 'norm layer that matches where'
        raise ValueError(f'replace_norms: {type(model).__name__} has no {wanted}; its norms are: {found}')
    if '' in chosen:
        raise ValueError(
            f'replace_norms: the model is itself a {type_name(model)} layer, which cannot be replaced in '
            'place: build the norm instead'
        )
    twins = {name: _twin(name, layer, norm, arguments) for name, layer in chosen.items()}  # all or none
    for name, layer in chosen.items():
        set_layer(model, layer, twins[name])
    return list(chosen)


def freeze_norms(
    model: nn.Module, where: Callable[[str, nn.Module], bool] | str | Iterable[str] | None = None
) -> list[str]:
    """Fix norm layers of a built network: neither statistics nor gamma and beta change any more, in training too.

    BNs of torch and mmcv become :class:`~mmnorm.norms.FrozenBN`; layers of mmnorm are what ``frozen=True`` makes of
    them; of others gamma and beta become buffers. An optimizer has to be made afterwards.

    Args:
        model (nn.Module): Any network; changed in place.
        where (callable, str, iterable[str] or None): Which layers, as of :func:`replace_norms`. Default None: all.

    Returns:
        list[str]: Names of the layers, in the order of the network.

    Raises:
        ValueError: A layer has no frozen form, as InstanceNorm with running statistics; nothing is changed then.
    """
    chosen = choose_norms(model, where, lambda layer: True)
    for name, layer in chosen.items():
        tracks = getattr(layer, 'running_mean', None) is not None
        if tracks and not is_plain_bn(layer) and isinstance(layer, _NormBase) and not isinstance(layer, PlaneNorm):
            raise ValueError(f'freeze_norms: {type_name(layer)} {name} keeps running statistics and has no frozen form')
    plain = [name for name, layer in chosen.items() if is_plain_bn(layer)]
    if plain:
        replace_norms(model, 'FrozenBN', plain)
    for name, layer in chosen.items():
        if name in plain:
            continue
        if isinstance(layer, PlaneNorm):
            layer.frozen = layer._held = True
            layer.eval()
        freeze(layer)
    return list(chosen)


def choose_norms(
    model: nn.Module,
    where: Callable[[str, nn.Module], bool] | str | Iterable[str] | None,
    default: Callable[[nn.Module], bool],
) -> dict[str, nn.Module]:
    """The norm layers of a network that ``where`` (see :func:`replace_norms`) means; with None those of ``default``."""
    layers = norm_layers(model)
    if where is None:
        return {name: layer for name, layer in layers.items() if default(layer)}
    if callable(where):
        return {name: layer for name, layer in layers.items() if where(name, layer)}
    if isinstance(where, str):
        return {name: layer for name, layer in layers.items() if fnmatchcase(name, where)}
    names = frozenset(where)
    return {name: layer for name, layer in layers.items() if name in names}


def is_plain_bn(layer: nn.Module) -> bool:
    """Whether a layer is BN, synchronized or not, and nothing more."""
    return isinstance(layer, _BatchNorm) and not isinstance(layer, PlaneNorm)


def _ranks_of(layer):
    """Which ranks a synchronized norm of torch, mmcv or ours is over, as arguments; none if all."""
    group, size = (getattr(layer, name, None) for name in ('process_group', 'group_size'))
    if isinstance(layer, PlaneNorm):
        return {'process_group': group} if group else {'group_size': size} if size else {}
    group = group or getattr(layer, 'group', None)  # mmcv's name; its group_size is another thing
    return {'process_group': group} if group else {}


def _twin(name, old, norm, arguments):
    cfg = dict(type=norm, eps=old.eps) | arguments
    if hasattr(old, 'momentum') and issubclass(NORMS.get(norm, TORCH_NORMS.get(norm, PlaneNorm)), _NormBase):
        cfg.setdefault('momentum', old.momentum)
    if norm.startswith('Sync') and not {'process_group', 'group_size'}.intersection(arguments):
        cfg.update(_ranks_of(old))
    new = build_norm(cfg, channels_of(old), name)
    tensors = _tensors_for(name, new, old)
    like = next(iter(tensors.values()), torch.empty(0))
    new.to(like.device, like.dtype)
    known = new.state_dict()
    own_keys = list(old.added_to_bn()) if isinstance(old, (PlaneNorm, BatchFreeNorm)) else []
    if isinstance(old, PlaneNorm) and old.affine_shape != (old.num_features,):
        own_keys += 'weight', 'bias'  # of groups, which the new one may have others of
    lost = [key for key in own_keys if key in tensors and (key not in known or known[key].shape != tensors[key].shape)]
    fitting = {key: value for key, value in tensors.items() if key in known and key not in lost}
    new.load_state_dict(fitting, strict=False)
    if lost:
        warn_once(
            f'replace_norms: {", ".join(lost)} of {type_name(old)} has no place in {norm}, in {name} and perhaps '
            'others: what they learned is lost, and the network computes something else until it is trained',
            key=f'replace_norms {type_name(old)} {norm} {lost}',
        )
    of_bn = getattr(new, 'bn_parameters', {})
    if not fitting.keys().isdisjoint(of_bn.values()):
        of_bn = {}  # the old one is of its kind
    for key, parameter in old.named_parameters():
        own = new._parameters.get(of_bn.get(key, key))
        if own is not None:
            own.requires_grad_(parameter.requires_grad)
            if torch.equal(own, parameter):
                setattr(new, of_bn.get(key, key), parameter)
    # train() would say that the network is about to train, and EN would take an eval() after it for norm_eval's
    new.training = old.training and not getattr(new, 'frozen', False)
    return new


def _tensors_for(name, new, old):
    """The state of a layer as another one may have it: what is of groups of channels is given for each channel."""
    tensors, own = dict(old.state_dict()), new.state_dict()
    if isinstance(old, PlaneNorm):
        for leaf, value in zip(('weight', 'bias'), old.gamma_beta):
            if leaf in tensors and leaf in own and own[leaf].shape != tensors[leaf].shape:
                tensors[leaf] = value.detach()
    both = isinstance(old, PlaneNorm) and 'running_mean' in tensors and 'running_mean' in own
    if both and own['running_mean'].shape != tensors['running_mean'].shape:
        held = old.running_statistics()
        if old.num_features % len(held[0]):
            raise ValueError(
                f'replace_norms: {name} has statistics of {len(held[0])} groups, which are not of whole channels '
                f'({old.num_features}): no other norm has such'
            )
        each = old.num_features // len(held[0])
        tensors['running_mean'], tensors['running_var'] = (value.repeat_interleave(each) for value in held)
    return tensors
