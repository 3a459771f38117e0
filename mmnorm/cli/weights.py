"""Show what SN, SW and RBN layers have learned, or harden SN's ratios."""

import contextlib
import io
import logging
import warnings
from pathlib import Path

EXAMPLE = 'mmnorm weights show CONFIG CHECKPOINT'


def add_arguments(parser):
    commands = parser.add_subparsers(dest='command', required=True)
    show = commands.add_parser(
        'show',
        help='write a page with the weights of every layer, by part and by receptive field',
        epilog='example: mmnorm weights show CONFIG epoch_1.pth epoch_12.pth',
        description='Write norm_weights.html (one self-contained page) and norm_weights.json.',
    )
    show.add_argument('config', metavar='CONFIG', help='config file of mmdet, mmseg or mmpretrain')
    show.add_argument(
        'checkpoints',
        nargs='+',
        metavar='CHECKPOINT',
        help='checkpoint; several, in the order of the training, are compared and the last is shown',
    )
    show.add_argument('--out', metavar='DIR', help='folder of the page (default: that of the last checkpoint)')
    show.add_argument(
        '--spread',
        action='store_true',
        help="also measure the spread of channel means around RBN's scaling calibration, on the test set",
    )
    harden = commands.add_parser(
        'harden',
        help='write a network whose SN layers compute only what they have learned to prefer',
        epilog='example: mmnorm weights harden CONFIG CHECKPOINT HARD.pth',
        description='Write the hardened checkpoint OUT and beside it a config (.py) that fine-tunes it: '
        'mmnorm train takes that config as it is.',
    )
    harden.add_argument('config', metavar='CONFIG', help='config file with SN or SyncSN layers')
    harden.add_argument('checkpoint', metavar='CHECKPOINT', help='its checkpoint')
    harden.add_argument('out', metavar='OUT', help='new checkpoint file, ending in .pth')


def show(args):
    """Write the page and the JSON file; return what to print."""
    import shlex
    from datetime import datetime

    import torch

    from mmnorm.engine import describe_device, die_with_parent, networks, progress, versions
    from mmnorm.engine.config import fit_to_cpu
    from mmnorm.engine.preflight import missing_data
    from mmnorm.files import check_writable
    from mmnorm.norms import RBN, SN, SW
    from mmnorm.report.learned import write_weights
    from mmnorm.statistics.learned import measure_spread, norm_weights
    from mmnorm.statistics.receptive_field import receptive_fields, run_dense_part

    die_with_parent()
    out = args.out or Path(args.checkpoints[-1]).parent
    check_writable(out)
    cfg = networks.read_config(args.config)
    cfg.launcher = 'none'
    if not torch.cuda.is_available():
        fit_to_cpu(cfg)
    model = networks.build_network(cfg)
    if not any(isinstance(layer, (SN, SW, RBN)) for layer in model.modules()):
        raise ValueError(f'{args.config} has no SN, SW or RBN layers: there are no weights to show')
    if args.spread:
        if not any(isinstance(layer, RBN) and layer.scale for layer in model.modules()):
            raise ValueError(f'--spread needs RBN layers with a scaling calibration; {args.config} has none')
        missing = missing_data(cfg.get('test_dataloader'))
        if missing or not cfg.get('test_dataloader'):
            raise ValueError(
                f'--spread needs the test set: {missing[0]} is missing'
                if missing
                else f'--spread needs the test set: {args.config} has no test_dataloader'
            )
    notes, snapshots, fields = [], [], None
    for path in args.checkpoints:
        networks.load_network(model, path)
        if fields is None:
            try:
                fields = receptive_fields(model, run_dense_part)
            except Exception as error:  # networks differ in what they can be called with
                fields = {}
                notes.append(f'Receptive fields were not measured: {type(error).__name__}: {error}')
        name = snapshot_name(path, args.checkpoints)
        snapshots.append(dict(name=name, checkpoint=path, **norm_weights(model, fields)))
    spread = None
    if args.spread:
        from mmengine.device import get_device
        from mmengine.runner import Runner

        with contextlib.redirect_stdout(io.StringIO()):  # what data sets print
            loader = Runner.build_dataloader(cfg.test_dataloader, seed=0)
        measured = measure_spread(model.to(get_device()), progress(loader, 'test set'), lambda m, b: m.test_step(b))
        spread = {name: {stage: values.tolist() for stage, values in of.items()} for name, of in measured.items()}
    content = dict(
        config=args.config,
        command=shlex.join(['mmnorm', 'weights', *args.argv]),
        date=datetime.now().astimezone().isoformat(timespec='seconds'),
        device=describe_device(),
        versions=versions(),
        notes=notes,
        snapshots=snapshots,
        spread=spread,
    )
    return write_weights(content, out)


def snapshot_name(path, paths):
    """A checkpoint's name on the page: the file's, with its folder where two have the same."""
    stems = [Path(other).stem for other in paths]
    path = Path(path)
    return path.stem if stems.count(path.stem) == 1 else f'{path.parent.name}/{path.stem}'


def harden(args):
    """Write the hardened network; return what to print."""
    from mmnorm.engine.networks import harden_files
    from mmnorm.terminal import command

    config, checkpoint, picks = harden_files(args.config, args.checkpoint, args.out)
    counts = []
    for index, moment in enumerate(('mean', 'variance')):
        picked = [name for pick in picks.values() for name in pick[index]]
        counts.append(f'{moment}: ' + ', '.join(f'{name} {picked.count(name)}' for name in ('IN', 'LN', 'BN')))
    return (
        f'{len(picks)} SN layers hardened ({"; ".join(counts)})\n{checkpoint}\n{config}\n'
        f'fine-tune it: {command("train")} {config}'
    )


def run(args):
    """Show or harden."""
    logging.basicConfig(format='%(message)s', level=logging.WARNING)
    warnings.simplefilter('ignore')  # what networks warn of in training or without a GPU is of no concern here
    from mmnorm.engine import forbid_running_checkpoints  # so late that --help is quick

    forbid_running_checkpoints()
    print(dict(show=show, harden=harden)[args.command](args))
