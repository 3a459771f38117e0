"""What the tensors of one norm become for another: pure functions on state dicts.

A layer's kind is known by what it keeps:

| kind       | beside weight and bias                                | to BN                   | from BN               |
|------------|-------------------------------------------------------|-------------------------|-----------------------|
| BN         | running_mean, running_var                             |                         |                       |
| EN         | BN's, alpha, beta, mean_batch_size, squared_gradients | always; alpha, beta go  | as it is              |
| RBN        | BN's, center_weight, scale_weight, scale_bias         | if both weights are 0   | weight / sigmoid(1)   |
| IEBN       | BN's, weight_readjust, bias_readjust                  | if the first is 0       | weight / sigmoid(-1)  |
| SN         | BN's, mean_weight, var_weight                         | if the ratios select BN | ratios that select BN |
| SSN        | SN's, radius                                          | as SN                   | as SN, radius 0       |
| BW         | BN's, running_wm or running_cov                       | never                   | as it is              |
| SW         | BN's, sw_mean_weight, sw_var_weight, running_cov      | never                   | never                 |
| batch-free | nothing: GN, IN and GW, as XBN has them               | never                   | statistics go         |
| IBN        | BN's for one half, in_weight and in_bias of the other | never                   | never                 |

All of it is for evaluation: what a converted network computes there is what the network computed before, but for
batch-free norms in the place of BN.
Whatever else is BN in evaluation (SyncBN, FrozenBN, BRN, CBN, MABN) is of kind BN here. So would be our own IBN, with
both halves in BN's tensors: :func:`~mmnorm.convert.convert_file` knows it in the network that it converts for by its
class, and refuses it as a source, by its mark (:mod:`mmnorm.norms.marks`) or, with BGN, by the config that a checkpoint
of mmengine carries. Other marks tell GW, PN, hardened SN and RBN's statistics; what is converted gets those of its
norms.

SN from BN. With ``bn_share=1`` the ratios are (0, 0, 1) to the last bit: the logits are (0, 0, 128), and exp(-128) is
0 in float32. So evaluation is BN's, up to the rounding of the arithmetic; but the softmax is saturated there, its
gradient is 0, and fine-tuning cannot leave BN: it trains a BN network at SN's price. A smaller share s gives logits
that train, (0, 0, log(2 s / (1 - s))), with gradients in proportion to s (1 - s); but then IN and LN have (1 - s) / 2
each of every mean and variance, and over 53 layers that adds up. Outputs of the last stage of a ResNet-50 with random
weights and recollected statistics move by 0.6 % (s = 0.9999), 6 % (0.999), 37 % (0.99) and 80 % (0.9) of their norm: a
smaller share is a start for training, not the same network.

SSN and SN become each other by their ratios: an SSN layer starts with weights that are its ratios, at radius 0, and an
SN layer with their logarithms. What has ended at 0 and 1 has no gradient as SN.

SN of the authors. Their running_var is a moving average of mean_n(v' + m^2) - mean_n(m)^2, where v' is the unbiased
variance of each channel of each sample, over its L positions; ours is BN's, (NL / (NL - 1)) times the biased variance
over samples and positions. Theirs is larger by less than 1 / (L - 1), at L = 49 (the last stage, 224 pixels) 2 % of
a variance, and smaller by at most 1 / (NL). A correction would need N, L and how much of the variance lies within
samples, none of which a checkpoint has; and evaluation needs none, since both take the running statistics as they are.
The other trace of it is that their IN and LN divide by v', ours by the biased variance (the paper's), so that outputs
would differ by the order of 1 / L: the config that is printed has ``unbiased=True``, which computes what they did.
"""

import torch
from torch.nn import functional as F

from mmnorm.norms import BW, EN, IEBN, RBN, SN, SSN, SW
from mmnorm.norms.batch_size import RULES
from mmnorm.norms.gates import initial_gate
from mmnorm.norms.mixture import SATURATED, weights_of_bn_share
from mmnorm.norms.ssn import ratios_at
from mmnorm.norms.steps import SteppedNorm
from mmnorm.terminal import command, config

BATCH_FREE = 'batch-free'
#: Mixtures of IN, LN and BN by ratios, whose weights are mean_weight and var_weight.
MIXTURES = dict(SN=SN, SSN=SSN)
#: Norms of which a gate multiplies the weight: the class, and the control parameter that is the gate's bias.
_GATED = dict(RBN=(RBN, 'scale_bias'), IEBN=(IEBN, 'bias_readjust'))
#: What each kind of norm learns or keeps beside BN's tensors, SSN beside SN's, and SW beside BW's. A layer is of the
#: first kind of which it has any.
OWN = {
    'SSN': tuple(SSN.control_buffers),
    **{norm.__name__: tuple(norm.added_to_bn()) for norm in (SN, RBN, EN, IEBN)},
    'SW': tuple(SW.control_parameters),
    'BW': tuple(BW.control_buffers),
    'IBN': ('in_weight', 'in_bias'),  # of IBN-Net's two halves, the instance-normalized one
}
_BN = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
# sums that SN's authors' detector fills while it tests
_BATCH_AVERAGE = ('batch_mean', 'batch_var')
_IGNORED = (*_BATCH_AVERAGE, *SteppedNorm.control_buffers)  # and how many steps a training has taken
_LEAVES = {*_BN, *_IGNORED, *(leaf for own in OWN.values() for leaf in own)}
_RATIO_TOLERANCE = 1e-6  # below what float32 statistics resolve

_REFUSED = {
    'SN': 'SN whose ratios do not select BN for mean and variance (pass --hard if they are hardened)',
    'SSN': 'SSN whose ratios do not select BN for mean and variance',
    'RBN': 'RBN whose center_weight or scale_weight is not 0, so that each instance is calibrated',
    'IEBN': 'IEBN whose weight_readjust is not 0, so that each instance has a gate of its own',
    'BW': 'BW, which mixes the channels of a group',
    'SW': 'SW, which mixes the channels of a group (--to SW keeps it)',
    BATCH_FREE: 'batch-free, without the running statistics that another norm needs (--to XBN keeps them)',
    'IBN': 'IBN, of which half normalizes each instance (--to IBN keeps it)',
    'BN': 'BN, which has no part of each instance',
}


def alike(kind, target):
    """Whether a layer of one kind computes by the same statistics as one of another: ratios may be made in two ways."""
    return kind == target or {kind, target} <= MIXTURES.keys()


_SHOWN = 3  # names of a list, unless all are asked for


def listed(names, verbose=False):
    """The number of names and the first of them, with ``verbose`` all (str)."""
    names = list(names)
    shown = names if verbose else names[:_SHOWN]
    return f'{len(names)} ({", ".join(shown)}{" ..." * (len(shown) < len(names))})' if names else '0'


def norm_layers(weights):
    """Find the norm layers of a state dict.

    Args:
        weights (dict[str, Tensor]): Of any network; weight and bias of its norms may be (C,) or (1, C, 1, 1).

    Returns:
        dict[str, dict[str, Tensor]]: Layer name to its tensors, by the last part of their names.
    """
    layers = {}
    for key, value in weights.items():
        name, _, leaf = key.rpartition('.')
        if leaf in _LEAVES:
            layers.setdefault(name, {})[leaf] = value
    return {name: layer for name, layer in layers.items() if _is_norm(layer)}


def kind_of(layer):
    """The kind (str) of a layer of :func:`norm_layers`, as in the table above."""
    return next(
        (kind for kind, own in OWN.items() if any(leaf in layer for leaf in own)),
        'BN' if 'running_mean' in layer else BATCH_FREE,
    )


def kinds(weights):
    """The kinds (set[str]) of the norms of a state dict."""
    return {kind_of(layer) for layer in norm_layers(weights).values()}


def mode_of(layers):
    """The mode (str) in which EN leaves alpha and beta of its layers as they are: 'rule' if they follow that."""
    for mode, power in RULES.items():
        if all(
            (layer[leaf] - _share(layer, power)).abs().max() <= _RATIO_TOLERANCE
            for layer in layers
            for leaf in ('alpha', 'beta')
            if leaf in layer
        ):
            return mode
    return 'offline'


def _share(layer, power):
    """EN's alpha by a rule; 0 where the batch size was never seen."""
    size = layer.get('mean_batch_size', torch.tensor(0.0))
    return torch.where(size > 0, size.clamp(min=1).pow(power), 0)


def convert_norms(weights, reference, bn_share=1.0, hard=False, ibn=(), verbose=False):
    """Turn the norms of a network into those of another.

    Args:
        weights (dict[str, Tensor]): State dict to convert; stays as it is. What is no norm is taken over.
        reference (dict[str, Tensor]): State dict of the network that it is for; its layers say what each norm becomes.
            Layers that it lacks are taken over.
        bn_share (float): Of SN or SSN from BN: the share of BN in mean and variance, in (0, 1].
        hard (bool): SN layers are hardened: the largest of their ratios counts 1.
        ibn (collection[str]): The layers of the reference that are IBN, which has the tensors of BN.
        verbose (bool): Name all layers that cannot be converted, not the first of them alone.

    Returns:
        tuple[dict[str, Tensor], dict[str, tuple[str, str]], list[str]]: The new state dict, its norms' tensors of
        shape (C,); the kinds that each layer had and has; and what the user should know.

    Raises:
        ValueError: A norm cannot become what it should; or ``bn_share`` is out of range.
    """
    weights_of_bn_share(bn_share)  # says what is wrong with it
    references = norm_layers(reference)
    targets = {name: 'IBN' if name in ibn else kind_of(layer) for name, layer in references.items()}
    converted, changed, refused = dict(weights), {}, {}
    sources = {name: layer for name, layer in norm_layers(weights).items() if name in targets}
    for name, source in sources.items():
        kind, target = kind_of(source), targets[name]
        layer = {leaf: value.reshape(_shape(leaf, value)) for leaf, value in source.items() if leaf not in _IGNORED}
        if kind == target == 'IBN':
            layer = _joined(layer)
        elif kind != target and alike(kind, target):
            layer = _of_ratios(target, {leaf: _ratios(layer, leaf, hard) for leaf in OWN['SN'] if leaf in layer}, layer)
        elif kind != target:
            layer = None if target in ('IBN', 'SW') else _to_bn(kind, layer, hard)
            if layer is None:
                refused.setdefault(kind, []).append(name)
                continue
            layer = _from_bn(target, layer, references[name], bn_share)
        if target != BATCH_FREE:
            layer = _completed(layer)
        prefix = f'{name}.' if name else ''
        for leaf in source:
            del converted[prefix + leaf]
        converted.update({prefix + leaf: value for leaf, value in layer.items()})
        changed[name] = kind, target
    if refused:
        wanted = ' or '.join(sorted({targets[name] for names in refused.values() for name in names}))
        raise ValueError(
            f'its norms cannot become {wanted}: '
            + '; '.join(f'{_REFUSED[kind]}: {listed(names, verbose)}' for kind, names in refused.items())
        )
    return converted, changed, list(_notes(sources, changed, bn_share, hard))


def _shape(leaf, value):
    """Of a tensor here, of which the authors keep more axes."""
    if leaf in OWN['SSN']:
        return ()
    return value.shape if leaf in (*OWN['SN'], *OWN['BW'], *OWN['SW']) or not value.dim() else (-1,)


def _is_norm(layer):
    weight, bias = layer.get('weight'), layer.get('bias')
    return (
        weight is not None
        and bias is not None
        and weight.shape == bias.shape
        and weight.dim() > 0
        and weight.numel() == max(weight.shape)
    )


def _to_bn(kind, layer, hard):
    """BN's tensors of a layer; None if BN cannot compute what it computes."""
    bn = {leaf: layer[leaf] for leaf in _BN if leaf in layer}
    if kind in (BATCH_FREE, 'IBN', 'BW', 'SW'):
        return None
    if kind in MIXTURES and not all(_selects_bn(layer, leaf, hard) for leaf in OWN['SN']):
        return None
    if kind in _GATED:
        bias = _GATED[kind][1]
        if any(layer[leaf].any() for leaf in OWN[kind] if leaf in layer and leaf != bias):
            return None
        if bias in layer:
            bn['weight'] = bn['weight'] * torch.sigmoid(layer[bias])
    return bn


def _ratios(layer, leaf, hard):
    """The ratios in float64 that a layer of SN or SSN makes of its weights for the mean or the variance."""
    weight = layer[leaf].double()
    if hard:
        return F.one_hot(weight.argmax(-1), weight.shape[-1]).double()
    return ratios_at(weight, layer['radius'].double()) if 'radius' in layer else weight.softmax(-1)


def _selects_bn(layer, leaf, hard):
    if leaf not in layer or layer[leaf].shape[-1:] != (3,):  # trained without BN's part
        return False
    return bool((1 - _ratios(layer, leaf, hard)[..., 2] <= _RATIO_TOLERANCE).all())


def _of_ratios(kind, ratios, layer):
    """A layer of SN or SSN with the ratios of one of the other."""
    if kind == 'SSN':
        weights = dict(ratios, radius=layer['weight'].new_zeros(()))
    else:
        weights = {leaf: ratio.log().clamp(min=-SATURATED) for leaf, ratio in ratios.items()}
    rest = {leaf: value for leaf, value in layer.items() if leaf != 'radius'}
    return {**rest, **{leaf: value.to(layer['weight']) for leaf, value in weights.items()}}


def _from_bn(kind, bn, reference, bn_share):
    """A layer that computes what BN computed, with the tensors that the layer it is for has."""
    if kind == BATCH_FREE:
        return {leaf: bn[leaf] for leaf in ('weight', 'bias')}
    if kind in MIXTURES:
        weights = bn['weight'].new_tensor(MIXTURES[kind].weights_of_share(bn_share))
        own = {leaf: weights.expand(*reference[leaf].shape[:-1], 3).clone() for leaf in OWN['SN']}
        return {**bn, **own, **(dict(radius=weights.new_zeros(())) if kind == 'SSN' else {})}
    if kind in _GATED:
        norm, bias = _GATED[kind]
        own = {
            leaf: torch.full_like(bn['weight'], start)
            for leaf, start in norm.control_parameters.items()
            if leaf in reference
        }
        gate = initial_gate(norm.control_parameters[bias], bn['weight']) if bias in own else 1
        return {**bn, 'weight': bn['weight'] / gate, **own}
    return bn  # EN and BW start from their norm_cfg, as they do from any BN checkpoint


def _joined(layer):
    """IBN-Net's halves as one layer; the statistics of the first are those of a new layer, and never used."""
    first = dict(weight=layer.pop('in_weight'), bias=layer.pop('in_bias'))
    first.update(running_mean=torch.zeros_like(first['bias']), running_var=torch.ones_like(first['weight']))
    return {**layer, **{leaf: torch.cat([half, layer[leaf]]) for leaf, half in first.items()}}


def _completed(layer):
    """A layer with the buffers that the authors' files lack: the counter, and without BN's part the statistics."""
    layer = dict(layer)
    layer.setdefault('num_batches_tracked', torch.tensor(0))
    if kind_of(layer) == 'SW':
        if 'running_cov' in layer:
            layer.setdefault('running_var', layer['running_cov'].diagonal(dim1=1, dim2=2).flatten())
        mean_weight, var_weight = OWN['SW']  # one, where theirs are tied
        if mean_weight in layer:
            layer.setdefault(var_weight, layer[mean_weight].clone())
    if _without_bn(layer):
        layer.setdefault('running_mean', torch.zeros_like(layer['weight']))
        layer.setdefault('running_var', torch.ones_like(layer['weight']))
    return layer


def _without_bn(layer):
    """Whether an SN layer mixes IN and LN alone."""
    return 'mean_weight' in layer and layer['mean_weight'].shape[-1:] == (2,)


def _notes(sources, changed, bn_share, hard):
    """What the user should know of a conversion."""

    def layers(condition):
        return [sources[name] for name, kinds_of_layer in changed.items() if condition(sources[name], *kinds_of_layer)]

    evalnorm = [
        max(float(layer[leaf].abs().max()) if leaf in layer else 0 for leaf in ('alpha', 'beta'))
        for layer in layers(lambda layer, kind, target: kind == 'EN' != target)
    ]
    if any(evalnorm):
        yield (
            f'alpha and beta of {sum(map(bool, evalnorm))} EN layers are not 0 (up to {max(evalnorm):.3g}) and are '
            'dropped: evaluation is now by the running statistics alone'
        )
    mode = mode_of(layers(lambda layer, kind, target: kind == target == 'EN'))
    if mode != 'rule':
        yield (
            f'alpha and beta of its EN layers are not those of the rule: their norm_cfg needs mode={mode!r}'
            + ", or 'online' to keep estimating them" * (mode == 'offline')
            + ', or loading replaces them'
        )
    placed = layers(lambda layer, kind, target: kind != BATCH_FREE == target)
    if placed:
        yield (
            f'{len(placed)} norms become batch-free and lose only their running statistics, as XBN backbones load '
            'BN checkpoints anyway: what the network computes changes, so train it with live BNs '
            f'({config("_base_/live_norm.py")})'
        )
    if layers(lambda layer, kind, target: kind != 'BW' == target):
        yield (
            'the channels of a group of BW are taken to be uncorrelated, as BN takes them: with a running matrix '
            "evaluation computes what it computed with BN until training finds how they are, with tracked='covariance' "
            "as nearly as Newton's iterations come"
        )
    if layers(lambda layer, kind, target: target in MIXTURES and not alike(kind, target)):
        yield (
            'the ratios of SN select BN to the last bit and so never train; --bn-share below 1 gives ratios that do'
            if bn_share == 1
            else f'IN and LN have {(1 - bn_share) / 2:.3g} each of every mean and variance: the '
            'network no longer computes what it did with BN, and has to be trained'
        )
    if layers(lambda layer, kind, target: target in MIXTURES and _without_bn(layer)):
        yield 'its SN layers have no BN part, as (8,1) weights: their norm_cfg needs batch_stat=False'
    if hard and layers(lambda layer, kind, target: kind in MIXTURES and target in MIXTURES):
        yield 'its SN layers are hardened: their norm_cfg needs hard=True'
    untaken = layers(lambda layer, *_: 'running_var' in layer and not layer['running_var'].any())
    if untaken:
        yield (
            f'running_var of {len(untaken)} layers is 0 throughout: no statistics were ever collected. Recollect '
            f'them ({command("statistics")} recollect)'
        )
    if layers(lambda layer, *_: any(leaf in layer for leaf in _BATCH_AVERAGE)):
        yield (
            'batch_mean and batch_var, the sums of a batch average that the authors take when they test, are '
            f'dropped: recollect the statistics ({command("statistics")} recollect)'
        )
