"""Show which norm layers a config has, which of them train, and which its norm_cfg left as BN.

The network is built, not trained; no weights are loaded or downloaded.

  trains    parameters or statistics change: what training does to a norm
  held      normalizes by fixed running statistics while its parameters train (norm_eval, frozen=True)
  by batch  normalizes by the batch while its parameters are fixed
  fixed     nothing of it changes (frozen stages, FrozenBN)
"""

import warnings

from .arguments import add_config_arguments

EXAMPLE = 'mmnorm norms configs/mask_rcnn_xbn_r50.py'


def add_arguments(parser):
    add_config_arguments(parser)
    parser.add_argument('--layers', action='store_true', help='one line per layer, not per part and type')


def run(args):
    """Build the network and print its norms."""
    warnings.simplefilter('ignore')  # what networks warn of in training is of no concern here
    from rich.console import Console

    from mmnorm.blocks import list_norms
    from mmnorm.engine.networks import build_network, read_config
    from mmnorm.engine.settings import merge_options
    from mmnorm.openmmlab.configs import describe_unreplaced

    cfg = read_config(args.config)
    merge_options(cfg, args.cfg_options)
    network = build_network(cfg).train()
    layers = list_norms(network)
    console = Console(width=250)  # in a narrow terminal rich would cut names
    console.print(table_of_layers(layers) if args.layers else table_of_parts(layers))
    unreplaced = describe_unreplaced(cfg.model, network)
    if unreplaced:
        print(unreplaced)


def table_of_parts(layers):
    """A table (rich.table.Table) with a row for each part of the network, type and state."""
    from mmnorm.statistics import part_of

    channels = {}
    for layer in layers:
        channels.setdefault((part_of(layer.name), layer.type, layer.state), []).append(layer.channels)
    table = _table('part', 'norm', 'layers', 'channels', 'state')
    for (part, kind, state), of in channels.items():
        table.add_row(part, kind, str(len(of)), str(of[0]) if len(set(of)) == 1 else f'{min(of)} to {max(of)}', state)
    return table


def table_of_layers(layers):
    """A table (rich.table.Table) with a row for each layer."""
    table = _table('layer', 'norm', 'channels', 'state')
    for layer in layers:
        table.add_row(layer.name, layer.type, str(layer.channels), layer.state)
    return table


def _table(*columns):
    from rich.table import Table

    table = Table(box=None)
    for column in columns:
        table.add_column(column, justify='right' if column in ('layers', 'channels') else 'left', no_wrap=True)
    return table
