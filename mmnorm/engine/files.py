"""Networks from files: a config and its checkpoints, and the same hardened (sn, Table III)."""
import copy
import logging
import pickle
import re
import zipfile
from pathlib import Path

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS, init_default_scope

from mmnorm.norms import RBN, SN, harden, ratios
from mmnorm.statistics import replace_norm_types

from .config import parse_config
from .evaluation import check_free, load_weights, read_checkpoint, save_network
from .runner import log_history_allowed

_ORIGIN = ('converted_from', 'through', 'whose', 'licence')
_LEARNED = {SN: ('mean_weight', 'var_weight'), RBN: ('center_weight', 'scale_weight', 'scale_bias')}


def read_config(path):
    """Read a config.

    Args:
        path (str or Path): File of mmdet or mmseg.

    Returns:
        Config: As the file has it.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: It cannot be read, or has no model.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'config {path} does not exist')
    cfg = parse_config(path)
    if 'model' not in cfg:
        raise ValueError(f'{path} has no model')
    return cfg


def build_network(cfg):
    """Build the model (nn.Module) of a config (Config), with its initial weights; ValueError if that cannot be done."""
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    try:
        return MODELS.build(copy.deepcopy(cfg.model))  # models change what they are given
    except Exception as error:  # of a class's own, or a name that is not registered
        reason = ' '.join(str(error).split())
        raise ValueError(f'the model of the config cannot be built: {type(error).__name__}: {reason}') from error


def read_file(path):
    """Load a checkpoint without running anything that it carries, or say what is wrong with it.

    Args:
        path (str or Path): File, or a URL that mmengine knows.

    Returns:
        dict: What it holds; something else, if the file does.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: It is no checkpoint, or wants to run something, which is named.
    """
    local = '://' not in str(path)
    if local and Path(path).is_dir():
        raise ValueError(f'{path} is a folder: name the checkpoint in it')
    if local and not Path(path).is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    try:
        return read_checkpoint(str(path))
    except ValueError as error:
        reason = _not_saved_whole(path) if local else None
        raise ValueError(f'{path} does not load as a checkpoint: '
                         f'{reason or _refused(path, error.__cause__)}') from error


def _not_saved_whole(path):
    """What keeps a file from being a whole one of torch.save (str); None if nothing does."""
    with open(path, 'rb') as file:
        start = file.read(32)
    if not start:
        return 'it is empty'
    if start.startswith(b'PK'):
        return None if zipfile.is_zipfile(path) else 'its end is missing, as after a download that broke off'
    # an old PyTorch wrote pickles
    return None if start.startswith(b'\x80') else f'it begins with {start!r}, which is no file of torch.save'


def _refused(path, error):
    """Why loading a file ended with an error."""
    if not isinstance(error, pickle.UnpicklingError):
        reason = ''.join(str(error).splitlines()[:1]).partition('. ')[0]
        if 'TorchScript' in reason:
            return 'it is a TorchScript program; a file of the state dict alone would do'
        return f'{type(error).__name__}: {reason[:160]}'
    wanted = _unsafe(path) or re.findall(r'GLOBAL (\S+)', str(error))
    if not wanted:
        return 'it is damaged, or holds more than tensors and plain values'
    names = ', '.join(ascii(name)[1:-1] for name in wanted[:3]) + ' ...' * (len(wanted) > 3)
    return f'refused, because it would run {names}; a file of the state dict alone, from whoever made it, would do'


def _unsafe(path):
    """What a file would run (list[str]), read from its instructions without following any; [] where that fails."""
    try:
        with log_history_allowed():
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a URL, a file of an old PyTorch, or instructions that are damaged
        return []


def load_network(model, path):
    """Load a checkpoint with everything that the SN and RBN layers of a network learn.

    A BN checkpoint would load too, and leave that at its initial values.

    Args:
        model (nn.Module): Changed in place.
        path (str): Checkpoint file.

    Returns:
        dict: What the file holds.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: It is no checkpoint, or does not fit the model; the first missing key is named.
    """
    checkpoint = read_file(path)
    load_weights(model, checkpoint, path)
    keys = {key.removeprefix('module.') for key in checkpoint.get('state_dict', checkpoint)}
    learned = [f'{name}.{key}' if name else key for name, layer in model.named_modules()
               for kind, own in _LEARNED.items() if isinstance(layer, kind) for key in own if hasattr(layer, key)]
    missing = [key for key in learned if key not in keys]
    if missing:
        raise ValueError(f'{path} lacks {len(missing)} of the {len(learned)} weights that SN and RBN layers of the '
                         f'config learn, {missing[0]} the first: it is a checkpoint of another network, of one with BN '
                         'perhaps')
    return checkpoint


def note_of(checkpoint):
    """What a tool of ours noted in a file that it wrote (dict); {} in files of others."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    note = meta.get('mmnorm') if isinstance(meta, dict) else None
    return note if isinstance(note, dict) else {}


def origin_of(checkpoint):
    """The part of a note (dict) that tells where converted weights come from, which all that is made of them keeps."""
    note = note_of(checkpoint)
    return {key: note[key] for key in _ORIGIN} if note.keys() >= set(_ORIGIN) else {}


def harden_files(config, checkpoint, out):
    """Write the hardened network of a config and a checkpoint, to be fine-tuned (sn, Section 4.1.4 and Table III).

    Two files are written, both or none, and none is overwritten: ``out`` with the weights, and beside it, ending in
    .py, a full config whose SN layers are hardened and whose ``load_from`` is ``out``. Before they get their names the
    network is built from the config and loads the weights strictly.

    Args:
        config (str or Path): Config with SN or SyncSN layers.
        checkpoint (str or Path): Checkpoint of it.
        out (str or Path): Ends in .pth.

    Returns:
        tuple[Path, Path, dict]: The config, the checkpoint, and what each layer picked as
        :func:`mmnorm.norms.harden` gives it.

    Raises:
        FileNotFoundError: A file is not there.
        FileExistsError: One of the two that would be written is.
        ValueError: The network has no SN layers, or such as its config does not name; or the checkpoint does not fit.
    """
    check_free(out, with_config=True)
    cfg = read_config(config)
    network = build_network(cfg)
    if not any(isinstance(layer, SN) for layer in network.modules()):
        raise ValueError(f'{config} has no SN layers: only their ratios can be hardened')
    loaded = load_network(network, checkpoint)
    undecided = [name for name, of_layer in ratios(network).items()
                 if any((values.topk(2).values.diff() == 0).any() for values in of_layer.values())]
    if undecided:
        print_log(f'{len(undecided)} SN layers, {undecided[0]} the first, prefer no normalizer, as before training; of '
                  'equal ones they take the first of IN, LN and BN', 'current', logging.WARNING)
    picks = harden(network)
    hard = copy.deepcopy(cfg)
    replace_norm_types(hard.model, {'SN': 'SN', 'SyncSN': 'SyncSN'}, hard=True)
    hard.load_from, hard.resume = str(out), False
    _check_hardened(config, build_network(hard), network)
    note = dict(origin_of(loaded), hardened_from=str(checkpoint),
                picks={name: list(pick) for name, pick in picks.items()})
    written = save_network(network.state_dict(), loaded, out, note, hard)
    return written[1], written[0], picks


def _check_hardened(config, hardened, network):
    soft = [name for name, layer in hardened.named_modules() if isinstance(layer, SN) and not layer.hard]
    if soft:
        raise ValueError(f'{config} builds {len(soft)} SN layers without naming their type, {soft[0]} the first: they '
                         'cannot be hardened by a config; give the module that builds them a norm_cfg')
    hardened.load_state_dict(network.state_dict())
