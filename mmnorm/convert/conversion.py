"""Checkpoint files from other code to ours, and from one norm to another."""

import argparse
import re
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mmnorm.engine import check_free, read_checkpoint, save_network
from mmnorm.engine.checkpoint import note_of, origin_of
from mmnorm.engine.networks import build_network, read_config
from mmnorm.norms import IBN, MARKS, NORMS, OWN_TENSORS, PlaneNorm
from mmnorm.openmmlab.mmpretrain_keys import to_names_of

from .backbones import OTHER, build_backbone, check_fit, check_placement, find_backbone
from .layouts import LAYOUTS, find_layout, select, take_backbone, take_network, unwrap
from .tensors import BATCH_FREE, MIXTURES, OWN, alike, convert_norms, kinds, listed

#: What a network may be converted to: a kind of norm, batch-free norms as XBN places them, or IBN as IBN-Net-a has it.
TARGETS = ('BN', 'EN', 'RBN', 'IEBN', 'SN', 'SSN', 'BW', 'SW', 'XBN', 'IBN')
#: Norms that take the files of another.
ALIASES = {
    **dict.fromkeys(('SyncBN', 'FrozenBN', 'BRN', 'CBN'), 'BN'),
    **{f'Sync{norm}': norm for norm in ('EN', 'RBN', 'IEBN', 'SN', 'SSN', 'BW', 'SW')},
}


@dataclass
class Report:
    """What a conversion did.

    Attributes:
        source (str): The file.
        layout (str): Key of ``LAYOUTS``.
        network (str): What the tensors fit.
        backbone (dict or None): Config of a backbone that loads the new file; None where one was given.
        norms (dict[str, int]): Number of layers by 'BN -> SN'.
        mapped (dict[str, str]): New names to old ones.
        missing (list[str]): New names of what the source lacks: set by the conversion, or left to the layers' defaults.
        dropped (dict[str, list[str]]): Names of the source that are not in the new file, by what they are.
        origin (dict): Where the weights come from, as the new file's note tells it (``converted_from``, ``through``,
            ``whose``, ``licence``).
        notes (list[str]): What the user should know.
    """

    source: str
    layout: str
    network: str
    backbone: dict | None
    norms: dict
    mapped: dict
    missing: list
    dropped: dict
    origin: dict
    notes: list

    def text(self, verbose=False):
        """Lines (str) for the user; ``verbose`` gives every name."""

        def part(title, of):
            return '\n    '.join([f'  {title}: {len(of)}', *of]) if verbose else f'  {title}: {listed(of)}'

        mapped = [new if new == old else f'{old} -> {new}' for new, old in self.mapped.items()]
        norms = ', '.join(f'{number} {change}' for change, number in self.norms.items())
        lines = [f'{self.source}: layout {self.layout}, {LAYOUTS[self.layout].about}']
        if self.origin['through']:
            lines.append(f'  already converted, from {self.origin["converted_from"]}: {self.origin["whose"]}')
        lines += [
            f'  fits {self.network}, every tensor used; norm layers: {norms or "none"}',
            part('tensors mapped', mapped),
            part('missing from the source, set or left to the layers', self.missing),
            *(part(f'dropped, {what}', of) for what, of in self.dropped.items()),
            f'  license: {self.origin["licence"]}',
            *(f'  note: {note}' for note in self.notes),
        ]
        if self.backbone:
            lines.append(f'  for the model of a config:\n    backbone={_as_python(self.backbone)}')
        return '\n'.join(lines)


def _as_python(value):
    """Code that makes a config."""
    if isinstance(value, dict):
        return f'dict({", ".join(f"{key}={_as_python(of_key)}" for key, of_key in value.items())})'
    return repr(value)


def convert_file(
    source,
    out,
    norm,
    layout='auto',
    prefix='',
    config=None,
    whole=False,
    source_prefix='',
    bn_share=1.0,
    hard=False,
    verbose=False,
):
    """Write a checkpoint of other code, or of another norm, as one that loads into ours.

    It is written only if it loads strictly: into the backbone of a config, or into the ResNet, ResNeXt or
    MobileNetV2 that its shapes are those of.

    Args:
        source (str): File, or a URL that mmengine knows ('torchvision://resnet50'). Nothing that it carries is run.
        out (str or Path): Ends in .pth; must not exist.
        norm (str): One of ``TARGETS`` or of ``ALIASES``, in upper or lower case.
        layout (str): Key of ``LAYOUTS``, or 'auto'.
        prefix (str): Put before every name. Default none, as for ``init_cfg=dict(type='Pretrained')`` of a backbone.
        config (str or Path): Config of a host whose backbone (and shared RoI head, with C4) it is for.
        whole (bool): Convert the whole network of ``config``, heads included; names stay.
        source_prefix (str): Take only what is below it, as of a teacher and a student.
        bn_share (float): Of SN or SSN from BN, see :mod:`mmnorm.convert.tensors`.
        hard (bool): The source's SN or SSN layers are hardened. Files of this package say so.
        verbose (bool): Name every layer that cannot be converted.

    Returns:
        Report: What was done.

    Raises:
        FileNotFoundError: ``source`` or ``config`` does not exist.
        FileExistsError: ``out`` does.
        ValueError: The file is no checkpoint or wants to run something, its layout is unknown or ambiguous, a norm
            cannot become the other, or something does not fit; or an argument means nothing here.
        ImportError: There is neither mmdet nor mmseg.
    """
    norm = _known(norm)
    if whole and (config is None or prefix):
        raise ValueError('--whole converts the whole network of a config: it needs --config and takes no --prefix')
    prefix, source_prefix = (part and f'{part.rstrip(".")}.' for part in (prefix, source_prefix))
    check_free(out)
    checkpoint = _read(source)
    given = None if config is None else _network_of(config, whole)
    try:
        layout, weights, names, dropped = _take(checkpoint, layout, source_prefix, whole)
        marked = any(name.endswith('.hardened') for name in weights)
        hardened = hard or marked or not {'hard', 'picks'}.isdisjoint(note_of(checkpoint))
        network = given or _find_network(weights, norm, hardened, LAYOUTS[layout])
        for named in (weights, names):
            to_names_of(network.parts[0], named)
        converted, changed, notes = _convert(weights, network, norm, bn_share, hardened, verbose)
        _check_use(changed, bn_share, hard)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    _join_halves(names)
    gone = [names[name] for name in names if name not in converted]
    if gone:
        dropped['not in the new norm'] = gone
    table = LAYOUTS[layout]
    states = any(name.endswith('.unbiased_instances') for name in network.reference)  # what the note says of SN
    stay = {kind for kind, target in changed.values() if alike(kind, target)}
    if table.note and not states and table.norms[0] in stay:
        notes.append(table.note)
    if table.network:
        notes.append(table.network)
    origin = _origin(checkpoint, source, table)
    note = dict(origin, layout=layout, norm=norm, fits=network.name)
    if hardened and not stay.isdisjoint(MIXTURES):
        note['hard'] = True
    backbone = network.cfg
    if backbone:
        note['backbone'] = backbone
        init_cfg = dict(type='Pretrained', checkpoint=str(out), **(dict(prefix=prefix) if prefix else {}))
        backbone = dict(backbone, init_cfg=init_cfg)
    # clones: a view would be saved with all of what it is a view of
    save_network(
        {prefix + name: value.clone() for name, value in converted.items()}, dict(meta=_meta(checkpoint)), out, note
    )
    return Report(
        source=str(source),
        layout=layout,
        network=network.name,
        backbone=backbone,
        norms=dict(Counter(' -> '.join(change) for change in changed.values())),
        mapped={prefix + name: names[name] for name in converted if name in names},
        missing=[
            prefix + name for name in network.reference if name not in names and name.rpartition('.')[2] not in MARKS
        ],
        dropped=dropped,
        origin=origin,
        notes=[*network.notes, *notes],
    )


#: Tensors of norms of this package that have BN's beside them and are not converted, to the first norm that has them.
_NOT_BN = {
    leaf: norm
    for leaf, norm in OWN_TENSORS.items()
    if issubclass(NORMS[norm], PlaneNorm)
    and norm not in {*TARGETS} - {'IBN'}
    and NORMS[norm].is_bn_in_evaluation is not True
}
_LIKE_BN = re.compile(r"""type=['"](IBN|(?:Sync)?BGN|GBGN)['"]""")


class _Network(NamedTuple):
    """What tensors are for: its modules, the backbone first; and, if it was found and not given, the config of it."""

    parts: list
    name: str
    cfg: dict | None = None
    notes: tuple = ()

    @property
    def reference(self):
        """The state dict of all parts."""
        return {name: value for part in self.parts for name, value in part.state_dict().items()}


def _known(norm):
    known = {name.lower(): name for name in (*TARGETS, *ALIASES)}
    other = next((name for name in NORMS if name.lower() == norm.lower()), None)
    if norm.lower() not in known and other:
        raise ValueError(
            f'--to {other}: no tensors make {other} compute what a network of another norm did. Its checkpoint loads '
            f'into a config with {other} as it is: what fits is taken, what does not is said, and the network has to '
            'be trained'
        )
    if norm.lower() not in known:
        raise ValueError(f'--to {norm}: not a norm to convert to; choose one of {", ".join(known.values())}')
    return known[norm.lower()]


def _read(source):
    # the authors' training scripts keep their arguments beside the network: plain attributes, which run nothing
    with torch.serialization.safe_globals([argparse.Namespace]):
        return read_checkpoint(source)


def _meta(checkpoint):
    meta = checkpoint.get('meta')
    return meta if isinstance(meta, dict) else {}


def _origin(checkpoint, source, table):
    """Where weights come from: as the note of an earlier conversion tells, or else as their layout suggests."""
    before = origin_of(checkpoint)
    if before:
        return {**before, 'through': [*before['through'], str(source)]}
    return dict(converted_from=str(source), through=[], whose=table.about, licence=table.license)


def _take(checkpoint, layout, source_prefix, whole):
    """The layout; the tensors by their new names; the old names by the new; and what was left out."""
    weights, dropped = unwrap(checkpoint)
    alike = _LIKE_BN.search(str(_meta(checkpoint).get('cfg', '')))
    norm = next(filter(None, (_NOT_BN.get(name.rpartition('.')[2]) for name in weights)), alike and alike[1])
    if norm:
        raise ValueError(f"its network has {norm}, whose tensors are named like BN's but mean something else")
    if source_prefix:
        weights, dropped['not under --source-prefix'] = select(weights, source_prefix)
    if whole:
        layout = 'mmdet'
    elif layout == 'auto':
        layout = find_layout(weights)
    weights, names, others = take_network(weights) if whole else take_backbone(weights, layout)
    broken = [names[name] for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f'{len(broken)} of its tensors hold NaN or infinity; first: {broken[0]}. Its training '
            'diverged: use a checkpoint from before that'
        )
    return layout, weights, names, {**dropped, **others}


def _join_halves(names):
    """Name both tensors of IBN-Net that become one of ours; the names are changed in place."""
    for half in [name for name in names if name.rpartition('.')[2] in OWN['IBN']]:
        name = half.replace('.in_', '.')
        names[name] = f'{names.pop(half)} and {names[name]}'


def _network_of(config, whole):
    """The network of a config, or its backbone."""
    network = build_network(read_config(config))
    if whole:
        return _Network([network], f'the network of {config}')
    if not hasattr(network, 'backbone'):
        raise ValueError(f'the network of {config} has no backbone: {type(network).__name__}')
    # C4 has the last stage in the heads
    shared = getattr(getattr(network, 'roi_head', None), 'shared_head', None)
    return _Network([network.backbone, *([shared] if shared is not None else [])], f'the backbone of {config}')


def _find_network(weights, norm, hardened, layout):
    """The backbone that the shapes are those of."""
    found = find_backbone(weights, norm, hardened, layout.stated.get(norm.removeprefix('Sync'), {}))
    return _Network([build_backbone(found.cfg)], found.name, found.cfg, found.notes)


def _convert(weights, network, norm, bn_share, hardened, verbose):
    """The new state dict, checked; what each layer's kind was and is; and notes."""
    parts, name, reference, found = network.parts, network.name, network.reference, network.cfg is not None
    ibn = {layer for part in parts for layer, module in part.named_modules() if isinstance(module, IBN)}
    _check_has_norm(norm, parts, kinds(reference) | ({'IBN'} if ibn else set()), name)
    check_placement(parts[0], weights, name, OTHER if found else '; without --config the xbn=... of SOURCE is printed')
    converted, changed, notes = convert_norms(weights, reference, bn_share, hardened, ibn, verbose)
    unmarked = {name: value for name, value in converted.items() if name.rpartition('.')[2] not in MARKS}
    converted = {**unmarked, **_marks(weights, reference, changed)}
    rest = dict(converted)
    for part in parts[1:]:
        check_fit(part, {key: rest.pop(key) for key in part.state_dict() if key in rest}, name)
    check_fit(parts[0], rest, name, OTHER if found else '')
    # an XBN backbone takes, and leaves, gamma and beta of a batch-free norm without affine
    return {key: converted[key] for key in reference if key in converted}, changed, notes


def _marks(weights, reference, changed):
    """Marks of the norms that were converted, which authors' files lack (:mod:`mmnorm.norms.marks`)."""
    marks = {}
    for layer, (kind, target) in changed.items():
        for leaf in MARKS:
            name = f'{layer}.{leaf}'
            theirs, own = (int(tensors[name]) if name in tensors else 0 for tensors in (weights, reference))
            if theirs and theirs != own and alike(kind, target):
                raise ValueError(
                    f'{leaf} of its layer {layer} is {theirs}, and {own} in the network that it is for: the arguments '
                    'of their norms differ'
                )
            if own and (theirs or target != BATCH_FREE):
                marks[name] = reference[name]
    return marks


def _check_has_norm(norm, parts, found, network):
    if norm == 'XBN':
        has = any(hasattr(module, 'xbn_layers') for part in parts for module in part.modules())
    else:
        has = ALIASES.get(norm, norm) in found
    if not has:
        raise ValueError(
            f'{network} has no {norm} layers; its norm layers are of kind '
            f'{", ".join(sorted(found)) or "none"} (mmnorm/convert/tensors.py)'
        )


def _check_use(changed, bn_share, hard):
    """See that the options about some norms found such norms."""
    if bn_share != 1 and not any(target in MIXTURES and not alike(kind, target) for kind, target in changed.values()):
        raise ValueError('--bn-share is for norms that become SN: none does here')
    if hard and not any(kind in MIXTURES for kind, _ in changed.values()):
        raise ValueError('--hard is for SN layers: it has none')
