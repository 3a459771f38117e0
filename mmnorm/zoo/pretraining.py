"""From a classifier to a row that starts from it: what that costs, and its backbone as the row loads it."""

from pathlib import Path
from typing import NamedTuple

from mmnorm.convert.backbones import check_fit, check_placement
from mmnorm.data.options import CLASSIFICATION
from mmnorm.engine import CheckpointError
from mmnorm.engine.networks import build_network
from mmnorm.engine.publish import publish_as, strip
from mmnorm.openmmlab.mmpretrain_keys import to_names_of
from mmnorm.openmmlab.pretrained import describe_misfit

from .rows import HOME

IMAGES = {'ImageNet': 1_281_167, 'CIFAR-10': 50_000, 'CIFAR-100': 50_000, 'digits': CLASSIFICATION['num_train']}
#: What a paper says that it trained its classifiers on; paper xbn and rbn say nothing
HARDWARE = {
    'evalnorm': '8 GPUs (Section 4.2)',
    'sn': '8 GPUs, where a row does not say otherwise (Section 4.1)',
    'bgn': '8 GPUs (Section 5)',
}


class Pretraining(NamedTuple):
    """What a row starts from, and how that is made.

    Attributes:
        name (str): The row.
        config (Path): Config of the pretraining.
        file (Path): Where its backbone is published.
        option (str): What the row's training has to be given to find it there; '' if it looks there by itself.
    """

    name: str
    config: Path
    file: Path
    option: str


def find_pretraining(model, cfg):
    """Find what a row has to be pretrained with.

    Args:
        model (Model): Its entry.
        cfg (Config): Of the row, or one that inherits from it.

    Returns:
        Pretraining: With the file that the config loads.

    Raises:
        ValueError: There is no pretraining: it starts from scratch, or from weights that others have released.
    """
    source = model.pretrained.get('From')
    if not source:
        what = f'starts from weights that are released: {model.pretrained["Source"]}' if model.pretrained else ''
        raise ValueError(f'{model.name} has no pretraining: it {what or "is trained from scratch"}')
    config = HOME / source
    init_cfg = cfg.model.backbone.get('init_cfg') or {}
    looks_for = init_cfg.get('checkpoint') or cfg.model.get('pretrained') or ''
    if looks_for and '://' not in looks_for:
        return Pretraining(model.name, config, Path(looks_for), '')
    file = Path('pretrained', f'{config.stem}.pth')
    return Pretraining(model.name, config, file, f'model.backbone.init_cfg.checkpoint={file}')


def describe_cost(pretraining, entry, cfg, processes):
    """What a pretraining costs.

    Args:
        pretraining (Pretraining): As :func:`find_pretraining` gives it.
        entry (Model or None): Of the pretraining's config; None if the zoo has none.
        cfg (Config): The same config, as it is trained.
        processes (int): Of the training.

    Returns:
        str: A few lines for the user.
    """
    batch = cfg.train_dataloader.batch_size * processes
    images = IMAGES.get(entry.data if entry else '')
    epochs, iterations = (cfg.train_cfg.get(key) for key in ('max_epochs', 'max_iters'))
    length = f'{epochs} epochs' if epochs else f'{iterations:,} iterations'
    if images and epochs:
        iterations = epochs * -(-images // batch)
        length += f' of {images:,} images: {iterations:,} iterations'
    lines = [
        f'{pretraining.config.stem} makes {pretraining.file}, which {pretraining.name} starts from',
        f'  {length}, with {batch} images on {processes} process{"es" * (processes > 1)}',
    ]
    if entry and entry.data != 'digits':
        lines.append(f'  the paper trained on {HARDWARE.get(entry.paper, "hardware that it does not name")}')
    return '\n'.join(lines)


def publish_backbone(source, cfg, name, path, note):
    """Write the backbone of a classifier to where a row looks for it, if each tensor is one of the row's backbone.

    Args:
        source (str or Path): Checkpoint of a classifier, or of its backbone alone.
        cfg (Config): Of the row.
        name (str): What to call it in messages.
        path (str or Path): Where the weights are written, over whatever is there.
        note (dict): Where they come from, of plain values, kept in the file.

    Returns:
        tuple[Published, list[str]]: What was done, and what the user should know of it.

    Raises:
        FileNotFoundError: ``source`` is not there.
        CheckpointError: It is no checkpoint, or its weights are not those of the row's backbone.
    """
    weights, notes = fit(strip(source), cfg, name, source)
    return publish_as(path, weights, source, note), notes


def fit(weights, cfg, name, source):
    """The part of a checkpoint's weights that a row's backbone (with C4, its head too) loads, key by key.

    Args:
        weights (Weights): All of the checkpoint.
        cfg (Config): Of the row.
        name, source: What to call row and checkpoint in messages.

    Returns:
        tuple[Weights, list[str]]: In the types of the row's tensors, and what the user should know of them.

    Raises:
        CheckpointError: They are of another depth, width, placement or norm; the first difference is named.
    """
    network = build_network(cfg)
    shared = getattr(getattr(network, 'roi_head', None), 'shared_head', None)  # C4 has the last stage there
    parts = [network.backbone, *([shared] if shared is not None else [])]
    reference = {key: value for part in parts for key, value in part.state_dict().items()}
    tensors = {key.removeprefix('backbone.'): value for key, value in weights.tensors.items()}
    if any(key.startswith('backbone.') for key in weights.tensors):
        own = {key.removeprefix('backbone.') for key in weights.tensors if key.startswith('backbone.')}
    else:
        children = {key.partition('.')[0] for key in reference}
        own = {key for key in tensors if key.partition('.')[0] in children}
    heads = [key for key in tensors if key not in own]
    tensors = {key: value for key, value in tensors.items() if key in own}
    to_names_of(parts[0], tensors)
    try:
        _check_backbone(parts[0], tensors)
        check_placement(parts[0], tensors, f'the backbone of {name}')
        rest = dict(tensors)
        for part in parts[1:]:
            check_fit(part, {key: rest.pop(key) for key in part.state_dict() if key in rest}, f'the head of {name}')
        check_fit(parts[0], rest, f'the backbone of {name}')
    except ValueError as error:
        raise CheckpointError(f'{source} is not what {name} starts from: {error}') from error
    left_out = list(weights.left_out)
    if heads:
        shown = ', '.join(heads[:2]) + ' ...' * (len(heads) > 2)
        left_out.append(f'{len(heads)} tensors outside the backbone ({shown})')
    typed = {key: value.to(reference[key].dtype) if key in reference else value for key, value in tensors.items()}
    cast = [key for key in typed if typed[key].dtype != tensors[key].dtype]
    notes = [
        f'{len(cast)} tensors are {tensors[key].dtype} in {source}, and written as {typed[key].dtype}: no more precise'
        for key in cast[:1]
    ]
    if 'ema_state_dict' in left_out:  # mmengine's EMAHook exchanges the two when it saves
        notes.append('the weights are the averages of that training (EMA), not those of its last step')
    return weights._replace(tensors=typed, left_out=left_out), notes


def _check_backbone(backbone, tensors):
    """Raise a ValueError where the backbone is another; BN's weights would load into XBN blocks."""
    misfit = describe_misfit(backbone, tensors)
    there = [layer for layer in getattr(backbone, 'xbn_layers', ()) if f'{layer}.running_mean' in tensors]
    if there and not misfit:
        misfit = f'it has BN in {len(there)} places where the backbone has batch-free norms, as {there[0]}'
    if misfit:
        raise ValueError(misfit)
