"""Checkpoint files from other code to ours, and from one norm to another."""
import argparse
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from mmnorm.engine import check_free, read_checkpoint, save_network
from mmnorm.engine.files import build_network, read_config
from mmnorm.norms import IBN

from .backbones import build_backbone, check_fit, find_backbone
from .layouts import LAYOUTS, find_layout, select, take_backbone, take_network, unwrap
from .norms import OWN, convert_norms, kinds

#: What a network may be converted to: a kind of norm, batch-free norms as XBN places them, or IBN as IBN-Net-a has it.
TARGETS = ('BN', 'EN', 'RBN', 'SN', 'XBN', 'IBN')
_SHOWN = 3  # names of a list, unless all are asked for


@dataclass
class Report:
    """What a conversion did.

    Attributes:
        source (str): The file.
        layout (str): Key of ``LAYOUTS``.
        network (str): What the tensors fit.
        norms (dict[str, int]): Number of layers by 'BN -> SN'.
        mapped (dict[str, str]): New names to old ones.
        missing (list[str]): New names of what the source lacks: set by the conversion, or left to the layers' defaults.
        dropped (dict[str, list[str]]): Names of the source that are not in the new file, by what they are.
        notes (list[str]): What the user should know.
    """

    source: str
    layout: str
    network: str
    norms: dict
    mapped: dict
    missing: list
    dropped: dict
    notes: list

    def text(self, verbose=False):
        """Lines (str) for the user; ``verbose`` gives every name."""
        def part(title, of):
            if verbose:
                return '\n    '.join([f'  {title}: {len(of)}', *of])
            return f'  {title}: {len(of)}' + f' ({", ".join(of[:_SHOWN])}{" ..." * (len(of) > _SHOWN)})' * bool(of)

        mapped = [new if new == old else f'{old} -> {new}' for new, old in self.mapped.items()]
        norms = ', '.join(f'{number} {change}' for change, number in self.norms.items())
        return '\n'.join([
            f'{self.source}: layout {self.layout}, {LAYOUTS[self.layout].about}',
            f'  fits {self.network}, every tensor used; norm layers: {norms or "none"}',
            part('tensors mapped', mapped), part('missing in the source, set or left to the layers', self.missing),
            *(part(f'dropped, {what}', of) for what, of in self.dropped.items()),
            f'  licence: {LAYOUTS[self.layout].licence}', *(f'  note: {note}' for note in self.notes)])


def convert_file(source, out, norm, layout='auto', prefix='', config=None, whole=False, source_prefix='', bn_share=1.,
                 hard=False):
    """Write a checkpoint of other code, or of another norm, as one that loads into ours.

    It is written only if it loads strictly: into the backbone of a config, or into the ResNet or ResNeXt that its
    shapes are those of.

    Args:
        source (str): File, or a URL that mmengine knows ('torchvision://resnet50'). Nothing that it carries is run.
        out (str or Path): Ends in .pth; must not exist.
        norm (str): One of ``TARGETS``. Files for SN also do for SyncSN, and so on; those for BN for SyncBN, FrozenBN
            and BRN.
        layout (str): Key of ``LAYOUTS``, or 'auto'.
        prefix (str): Put before every name. Default none, as for ``init_cfg=dict(type='Pretrained')`` of a backbone.
        config (str or Path): Config of mmdet or mmseg whose backbone (and shared RoI head, with C4) it is for.
        whole (bool): Convert the whole network of ``config``, heads included; names stay.
        source_prefix (str): Take only what is below it, as of a teacher and a student.
        bn_share (float): Of SN from BN, see :mod:`mmnorm.convert.norms`.
        hard (bool): The source's SN layers are hardened. Files of :func:`mmnorm.engine.files.harden_files` say so.

    Returns:
        Report: What was done.

    Raises:
        FileNotFoundError: ``source`` or ``config`` does not exist.
        FileExistsError: ``out`` does.
        ValueError: The file is no checkpoint or wants to run something, its layout is unknown or ambiguous, a norm
            cannot become the other, or something does not fit.
        ImportError: There is neither mmdet nor mmseg.
    """
    if whole and (config is None or prefix):
        raise ValueError('--whole is of the whole network of a config: it needs --config and takes no --prefix')
    check_free(out)
    checkpoint = _read(source)
    try:
        report, weights = _convert(checkpoint, source, norm, layout, config, whole, source_prefix, bn_share, hard)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    table = LAYOUTS[report.layout]
    note = dict(converted_from=str(source), layout=report.layout, norm=norm, fits=report.network, whose=table.about,
                licence=table.licence)
    report.mapped = {prefix + new: old for new, old in report.mapped.items()}
    report.missing = [prefix + new for new in report.missing]
    # clones: a view would be saved with all of what it is a view of
    weights = {prefix + name: value.clone() for name, value in weights.items()}
    save_network(weights, dict(meta=_meta(checkpoint)), out, note)
    return report


_LIKE_BN = re.compile(r"""type=['"](IBN|(?:Sync)?BGN|GBGN)['"]""")


def _meta(checkpoint):
    meta = checkpoint.get('meta')
    return meta if isinstance(meta, dict) else {}


def _read(source):
    if '://' not in str(source) and not Path(source).is_file():
        raise FileNotFoundError(f'checkpoint {source} does not exist')
    # the authors' training scripts keep their arguments beside the network: plain attributes, which run nothing
    with torch.serialization.safe_globals([argparse.Namespace]):
        return read_checkpoint(str(source))


def _convert(checkpoint, source, norm, layout, config, whole, source_prefix, bn_share, hard):
    """The report and the new state dict, checked, without prefix."""
    weights, dropped = unwrap(checkpoint)
    alike = _LIKE_BN.search(str(_meta(checkpoint).get('cfg', '')))
    if alike:
        raise ValueError(f'its network has {alike[1]}, whose tensors have the names of BN\'s and mean something else')
    if source_prefix:
        weights, dropped['not under --source-prefix'] = select(weights, source_prefix)
    if whole:
        layout = 'mmdet'
    elif layout == 'auto':
        layout = find_layout(weights)
    weights, origin, others = take_network(weights) if whole else take_backbone(weights, layout)
    dropped.update(others)
    parts, network = _parts(weights, norm, config, whole)
    reference = {name: value for part in parts for name, value in part.state_dict().items()}
    ibn = {name for part in parts for name, module in part.named_modules() if isinstance(module, IBN)}
    _check_has_norm(norm, parts, kinds(reference) | ({'IBN'} if ibn else set()), network)
    hard = hard or 'picks' in (_meta(checkpoint).get('mmnorm') or {})
    converted, changed, notes = convert_norms(weights, reference, bn_share, hard, ibn)
    rest = dict(converted)
    for part in parts[1:]:
        check_fit(part, {name: rest.pop(name) for name in part.state_dict() if name in rest}, network)
    check_fit(parts[0], rest, network)
    # an XBN backbone takes, and leaves, gamma and beta of a batch-free norm without affine
    converted = {name: converted[name] for name in reference if name in converted}
    for half in [name for name in origin if name.rpartition('.')[2] in OWN['IBN']]:
        name = half.replace('.in_', '.')
        origin[name] = f'{origin.pop(half)} and {origin[name]}'
    gone = [origin[name] for name in origin if name not in converted]
    if gone:
        dropped['not in the new norm'] = gone
    return Report(
        source=str(source), layout=layout, network=network,
        norms=dict(Counter(' -> '.join(change) for change in changed.values())),
        mapped={name: origin[name] for name in converted if name in origin},
        missing=[name for name in reference if name not in origin], dropped=dropped, notes=notes), converted


def _parts(weights, norm, config, whole):
    """The modules that the tensors are for, the backbone first, and what to call them."""
    if config is None:
        cfg, name = find_backbone(weights, norm)
        return [build_backbone(cfg)], name
    network = build_network(read_config(config))
    if whole:
        return [network], f'the network of {config}'
    if not hasattr(network, 'backbone'):
        raise ValueError(f'the network of {config} has no backbone: {type(network).__name__}')
    # C4 has the last stage in the heads
    shared = getattr(getattr(network, 'roi_head', None), 'shared_head', None)
    return [network.backbone, *([shared] if shared is not None else [])], f'the backbone of {config}'


def _check_has_norm(norm, parts, found, network):
    has = norm in found
    if norm == 'XBN':
        has = any(hasattr(module, 'xbn_layers') for part in parts for module in part.modules())
    if not has:
        raise ValueError(f'{network} has no {norm} layers: those that it has are of kind '
                         f'{", ".join(sorted(found)) or "none"} (mmnorm/convert/norms.py)')
