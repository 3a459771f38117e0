"""Networks from files: a config and its checkpoints, and the same hardened (sn, Table III)."""

import copy
import logging

from mmengine.logging import print_log
from mmengine.registry import MODELS, init_default_scope

from mmnorm.norms import RBN, SN, SW, harden, ratios
from mmnorm.openmmlab.configs import replace_norm_types

from .checkpoint import read_checkpoint
from .config import parse_config
from .evaluation import check_free, load_weights, save_network


def read_config(path):
    """Read a config.

    Args:
        path (str or Path): File of mmdet, mmseg or mmpretrain.

    Returns:
        Config: As the file has it.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: It cannot be read, or has no model.
    """
    cfg = parse_config(path)
    if not isinstance(cfg.get('model'), dict):
        raise ValueError(f'{path} has no model' if cfg.get('model') is None else f'{path}: model must be a dict')
    return cfg


def build_network(cfg):
    """Build the model (nn.Module) of a config (Config), with its initial weights."""
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    return MODELS.build(copy.deepcopy(cfg.model))  # models change what they are given


def load_network(model, path):
    """Load a checkpoint with everything that the SN, RBN and SW layers of a network learn.

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
    checkpoint = read_checkpoint(path)
    load_weights(model, checkpoint, path)
    keys = {key.removeprefix('module.') for key in checkpoint.get('state_dict', checkpoint)}
    learned = [
        f'{name}.{key}' if name else key
        for name, layer in model.named_modules()
        if isinstance(layer, (SN, RBN, SW))
        for key in layer.control_parameters
        if hasattr(layer, key)
    ]
    missing = [key for key in learned if key not in keys]
    if missing:
        raise ValueError(
            f'{path} is missing {len(missing)} of the {len(learned)} weights that SN, RBN and SW layers '
            f'of the config learn; first: {missing[0]}. It is a checkpoint of another network, perhaps one '
            'with BN'
        )
    return checkpoint


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
    undecided = [
        name
        for name, of_layer in ratios(network).items()
        if isinstance(network.get_submodule(name), SN)
        and any((values.topk(2).values.diff() == 0).any() for values in of_layer.values())
    ]
    if undecided:
        print_log(
            f'{len(undecided)} SN layers prefer no normalizer, as before training; first: {undecided[0]}. '
            'Of equal ones they take IN before LN, and LN before BN',
            'current',
            logging.WARNING,
        )
    picks = harden(network)
    hard = copy.deepcopy(cfg)
    replace_norm_types(hard.model, {'SN': 'SN', 'SyncSN': 'SyncSN'}, hard=True)
    hard.load_from, hard.resume = str(out), False
    _check_hardened(config, build_network(hard), network)
    note = dict(hardened_from=str(checkpoint), picks={name: list(pick) for name, pick in picks.items()})
    written = save_network(network.state_dict(), loaded, out, note, hard)
    return written[1], written[0], picks


def _check_hardened(config, hardened, network):
    soft = [name for name, layer in hardened.named_modules() if isinstance(layer, SN) and not layer.hard]
    if soft:
        raise ValueError(
            f'{config} builds {len(soft)} SN layers without naming their type; first: {soft[0]}. They '
            'cannot be hardened by a config: give the module that builds them a norm_cfg'
        )
    hardened.load_state_dict(network.state_dict())
