"""What SN, SW and RBN layers have learned: their weights by layer, by part of the network and by receptive field.

Everything takes a network or a state dict alone, so that snapshots over training can be compared, and gives plain
numbers. Papers sn (Fig. 1, 4, 5, 7, 8 and 10 to 14) and rbn (Fig. 3, 4 and 5).
"""

import copy
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmnorm.norms import RBN, SN, SW, ratios
from mmnorm.norms.mixture import NAMES
from mmnorm.norms.modes import evaluating, feed
from mmnorm.norms.sw import MEMBERS as SW_MEMBERS

from .collect import Moments, unwrapped

FIELD_BOUNDS = (49, 199, 299, 427)  # pixels; where sn's Section 4.1.4 divides the layers of ResNet-50
FIELD_BINS = ('up to 49', '50 to 199', '200 to 299', '300 to 427', 'over 427', 'whole image', 'not defined')
MIXTURES = dict(sn=SN, sw=SW)
#: What is mixed, by the number of ratios, in their order; each has the names of those with fewer.
MEMBERS = dict(sn={2: NAMES[:2], 3: NAMES}, sw=SW_MEMBERS)
RBN_WEIGHTS = tuple(RBN.control_parameters)  # w_m, w_v, w_b
RBN_COLUMNS = ('center_weight', 'abs_center_weight', 'scale_weight', 'abs_scale_weight', 'scale_bias')


def norm_weights(
    source: nn.Module | dict[str, Tensor], fields: dict[str, float | None] | None = None
) -> dict[str, Any]:
    """What every SN, SW and RBN layer has learned, and averages by part and by receptive field.

    Args:
        source (nn.Module or dict[str, Tensor]): A network, or the state dict of one. Which layers are hardened is not
            in a state dict: its ratios are the softmaxed weights.
        fields (dict[str, float or None] or None): Receptive fields by layer name, as from
            :func:`~mmnorm.statistics.receptive_field.receptive_fields`.

    Returns:
        dict: Plain numbers, empty where the network has no such layers:

        - ``members`` (dict[str, list[str]]): For ``sn`` and ``sw`` what is mixed, in the order of the ratios: IN, LN
          and BN; BW, IW, BN, IN and LN. Without what no layer of the network has.
        - ``sn``, ``sw`` (list[dict]): For each SN and each SW layer, in network order: ``name``, ``part``,
          ``receptive_field`` (pixels, infinite for the whole image, None where there is none), ``field_bin``,
          ``members`` (the layer's), ``mean`` and ``var`` (ratios of the network's members, 0 of those that the layer
          has not; averaged over SN's groups; ``var`` is that of SW's covariances), ``mean_pick`` and ``var_pick`` (the
          member with the largest, for each group), ``kl`` (see :func:`symmetric_kl`; the mean over groups).
        - ``rbn`` (list[dict]): For each RBN layer ``name``, ``part``, ``receptive_field``, ``field_bin``, and means
          over channels ``center_weight`` (w_m), ``abs_center_weight``, ``scale_weight`` (w_v), ``abs_scale_weight``,
          ``scale_bias`` (w_b); None where the layer does not make that calibration.
        - ``sn_by_part``, ``sn_by_field``, ``sw_by_part``, ``sw_by_field``, ``rbn_by_part`` (dict[str, dict]): Averages
          over layers, with their number as ``layers``; those over all layers come last, as 'all'.
        - ``sn_differing``, ``sw_differing`` (float or None): Share of layers of which mean and variance pick different
          members.
    """
    fields = fields or {}
    tables: dict[str, Any] = dict(members={})
    for kind, norm in MIXTURES.items():
        found = _ratios_of(source, norm)
        members = max((MEMBERS[kind][mean.shape[-1]] for mean, _ in found.values()), key=len, default=())
        rows = [_place(name, fields) | _describe_mixture(kind, members, *of) for name, of in found.items()]
        differing = [row['mean_pick'] != row['var_pick'] for row in rows]
        tables['members'][kind] = list(members)
        tables |= {
            kind: rows,
            f'{kind}_by_part': average(rows, 'part', ('mean', 'var', 'kl')),
            f'{kind}_by_field': average(rows, 'field_bin', ('mean', 'var', 'kl'), FIELD_BINS),
            f'{kind}_differing': sum(differing) / len(differing) if differing else None,
        }
    tensors = source.state_dict() if isinstance(source, nn.Module) else source
    rbn = [_place(name, fields) | _describe_rbn(of_layer) for name, of_layer in _rbn_weights(tensors).items()]
    return tables | dict(rbn=rbn, rbn_by_part=average(rbn, 'part', RBN_COLUMNS))


def _ratios_of(source, norm):
    """The ratios of mean and variance by layer, of the layers of a norm."""
    if not isinstance(source, nn.Module):
        return {name: tuple(of.values()) for name, of in state_dict_ratios(source, norm).items()}
    found = ratios(source).items()
    return {name: tuple(of.values()) for name, of in found if isinstance(source.get_submodule(name), norm)}


def state_dict_ratios(state_dict: dict[str, Tensor], norm: type[SN] | type[SW] = SN) -> dict[str, dict[str, Tensor]]:
    """The ratios of SN's or SW's layers in a checkpoint, as :func:`mmnorm.norms.ratios` gives those of a network."""
    keys = dict(zip(('mean', 'var'), norm.control_parameters))
    return {
        name: {moment: tensors.get(key, tensors[keys['mean']]).float().softmax(-1) for moment, key in keys.items()}
        for name, tensors in _by_layer(state_dict, tuple(keys.values())).items()
        if len(tensors) == 2 or 'sw_mean_weight' in tensors  # alone, where SW's weights are tied
    }


def _rbn_weights(state_dict):
    # a layer of which only the scaling calibration is made has no center_weight, and the other way around
    return _by_layer(state_dict, RBN_WEIGHTS)


def _by_layer(state_dict, keys):
    """Tensors of these names by the layer they are in, in the order of the state dict, which is the network's."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state_dict.items():
        layer, _, name = key.rpartition('.')
        if name in keys:
            layers.setdefault(layer, {})[name] = tensor.detach()
    return layers


def symmetric_kl(p: Tensor, q: Tensor) -> Tensor:
    """Discrepancy between two distributions, KL(p||q) + KL(q||p) (sn, Fig. 7c).

    Args:
        p, q (Tensor): (..., k), summing to 1 over the last axis.

    Returns:
        Tensor: (...), in nats; infinite where one of them excludes what the other does not, as hard ratios do.
    """
    p, q = p.double(), q.double()
    return sum(torch.special.xlogy(a, a) - torch.special.xlogy(a, b) for a, b in ((p, q), (q, p))).sum(-1)


def average(
    rows: list[dict[str, Any]], group: str, columns: tuple[str, ...], order: tuple[str, ...] = ()
) -> dict[str, dict[str, Any]]:
    """Average the layers of each group.

    Args:
        rows (list[dict]): One for each layer.
        group (str): The column to group by.
        columns (tuple[str]): What to average: numbers or lists of them. None is left out; only None gives None.
        order (tuple[str]): Groups in this order; by default in that of their first layers.

    Returns:
        dict[str, dict]: Group to the averages and ``layers``, the number of layers; last 'all'. Empty without layers.
    """
    names = [name for name in order if any(row[group] == name for row in rows)]
    names += dict.fromkeys(row[group] for row in rows if row[group] not in names)
    groups = {name: [row for row in rows if row[group] == name] for name in names}
    if rows:
        groups['all'] = rows
    return {
        name: dict(layers=len(members), **{column: _mean(members, column) for column in columns})
        for name, members in groups.items()
    }


def _mean(rows, column):
    present = [row[column] for row in rows if row[column] is not None]
    return np.mean(present, axis=0).tolist() if present else None


def part_of(name: str) -> str:
    """Which part of a network a layer belongs to.

    Args:
        name (str): The layer's name in OpenMMLab's detectors and segmentors, or in any network.

    Returns:
        str: 'backbone.stem', 'backbone.stage1' ..., 'neck', 'rpn_head', 'roi_head.bbox_head', 'decode_head' ...;
        without a backbone 'stem', 'stage1' ..., else the first part of the name, or 'network' if that is a number.
    """
    heads = re.match(r'(?:\w+_head\.)*\w*_head(?=\.|$)', name)
    if heads:
        return heads[0]
    backbone = 'backbone.' if name.startswith('backbone.') else ''
    rest = name.removeprefix(backbone)
    stage = re.match(r'(?:layer|stage)(\d+)(?:\.|$)', rest)
    if stage:
        return f'{backbone}stage{stage[1]}'
    numbered = re.match(r'(?:layers|stages)\.(\d+)(?:\.|$)', rest)
    if numbered:
        return f'{backbone}stage{int(numbered[1]) + 1}'
    first = rest.partition('.')[0]
    if re.fullmatch(r'stem\w*|(?:conv|bn|norm|gn|in)1', first):
        return f'{backbone}stem'
    return f'{backbone}{first}' if first and not first.isdigit() else backbone.rstrip('.') or 'network'


def field_bin(field: float | None) -> str:
    """The range of receptive fields, one of ``FIELD_BINS``, of a field in pixels (infinite: the whole image; None)."""
    if field is None:
        return FIELD_BINS[-1]
    if math.isinf(field):
        return FIELD_BINS[-2]
    return FIELD_BINS[sum(field > bound for bound in FIELD_BOUNDS)]


def _place(name, fields):
    field = fields.get(name)
    return dict(name=name, part=part_of(name), receptive_field=field, field_bin=field_bin(field))


def _describe_mixture(kind, members, mean, var):
    own = MEMBERS[kind][mean.shape[-1]]
    mean, var = (moment.reshape(-1, moment.shape[-1]) for moment in (mean, var))  # one row for each group
    picks = [[own[index] for index in moment.argmax(-1).tolist()] for moment in (mean, var)]
    shares = [dict(zip(own, moment.mean(0).tolist())) for moment in (mean, var)]
    averages = [[share.get(name, 0.0) for name in members] for share in shares]
    return dict(
        members=list(own),
        mean=averages[0],
        var=averages[1],
        mean_pick=picks[0],
        var_pick=picks[1],
        kl=symmetric_kl(mean, var).mean().item(),
    )


def _describe_rbn(tensors):
    row = dict.fromkeys(RBN_COLUMNS)
    for name, value in tensors.items():
        row[name] = value.float().mean().item()
        if f'abs_{name}' in row:
            row[f'abs_{name}'] = value.float().abs().mean().item()
    return row


def measure_spread(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[Any, Any], Any] | None = None,
    names: Iterable[str] | None = None,
) -> dict[str, dict[str, Tensor]]:
    """How far the channels' means vary over a data set, before and after RBN's scaling calibration (rbn, Fig. 5).

    mu_c is the mean over the positions of a channel of a sample, of x_s before and of x_s R(w_v K_s + w_b) after, both
    without RBN's weight and bias. The network is in evaluation mode, without gradients; its own modes come back. A
    layer that is called several times on a batch, as one shared by the levels of a pyramid, counts each as samples.

    Args:
        model (nn.Module): Has RBN layers that make the scaling calibration.
        batches (iterable): What ``forward`` takes, at least one; read one at a time.
        forward (callable or None): ``forward(model, batch)`` runs the network; default ``model(batch)``.
        names (iterable[str] or None): Layers to measure; default all of them.

    Returns:
        dict[str, dict[str, Tensor]]: Layer name to ``before`` and ``after``, standard deviations (C,) over the samples
        in float64. Layers that saw fewer than two samples are left out.

    Raises:
        ValueError: There are no such layers, no batches, or one of ``names`` is no such layer.
    """
    network = unwrapped(model)
    layers = {name: m for name, m in network.named_modules() if isinstance(m, RBN) and m.scale}
    if not layers:
        raise ValueError(f'{type(network).__name__} has no RBN layer with a scaling calibration')
    names = list(layers if names is None else names)
    unknown = [name for name in names if name not in layers]
    if unknown:
        raise ValueError(
            f'no RBN layer with a scaling calibration is called {", ".join(unknown)}; choose one of {", ".join(layers)}'
        )
    spreads = {name: _Spread(layers[name]) for name in names}
    handles = [layers[name].register_forward_pre_hook(spread.add) for name, spread in spreads.items()]
    try:
        with evaluating(model):
            feed(model, batches, forward, 'to measure the spread of channel means on')
    finally:
        for handle in handles:
            handle.remove()
    return {name: spread.deviations() for name, spread in spreads.items() if spread.samples > 1}


class _Spread:
    """Moments of mu_c over samples, before and after a layer's scaling calibration."""

    def __init__(self, layer):
        self.samples = 0
        self.stages = dict(before=(_bare(layer, scale=False), Moments()), after=(_bare(layer, scale=True), Moments()))

    def add(self, layer, args):
        x = args[0]
        if len(x):
            self.samples += len(x)
            for bare, moments in self.stages.values():
                means = bare(x).double().reshape(*x.shape[:2], -1).mean(2)
                moments.add(means.mean(0), means.var(0, correction=0), len(x))

    def deviations(self):
        return {stage: moments.var.sqrt().cpu() for stage, (_, moments) in self.stages.items()}


def _bare(layer, scale):
    """An RBN layer without its affine, with or without the scaling calibration: right for every choice of K_m, K_s."""
    bare = copy.deepcopy(layer).eval()
    bare.scale = scale
    with torch.no_grad():
        bare.weight.fill_(1)
        bare.bias.zero_()
    return bare
