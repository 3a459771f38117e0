"""Make the weights that a detection or segmentation row of the papers starts from, where nobody has released them.

Trains the classifier that the row names, and publishes its backbone, checked key by key, to where the row looks for it;
a training of the row then finds it. What was interrupted is continued by the same command.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from .arguments import Options, key_value, positive
from .launch import train
from .light import light

EXAMPLE = 'mmnorm pretrain faster_rcnn_xbn_r50_p1 --processes 8'


def add_arguments(parser):
    parser.add_argument('row', metavar='ROW', help='config of the zoo, by name or path, or one that inherits from it')
    parser.add_argument('--work-dir', help='of the pretraining; default work_dirs/NAME_OF_ITS_CONFIG')
    parser.add_argument('--processes', type=positive, metavar='N', help='as of train; default 1')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        type=key_value,
        default=[],
        metavar='KEY=VALUE',
        help="override values of the pretraining's config, as of train",
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--check', action='store_true', help='only say what it costs and what is missing to train it, and exit'
    )
    parser.add_argument(
        '--from',
        dest='source',
        metavar='CHECKPOINT',
        help='train nothing: publish the backbone of this classifier, which may be without its head',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace the file that the row looks for')


def run(args):
    """Pretrain, and publish."""
    from mmnorm import engine
    from mmnorm.zoo import load_zoo
    from mmnorm.zoo.pretraining import find_pretraining, publish_backbone

    engine.forbid_running_checkpoints()
    zoo = load_zoo()
    model, config = find_row(args.row, zoo)
    cfg = engine.parse_config(config)
    pretraining = find_pretraining(model, cfg)
    if not args.overwrite and not args.check and pretraining.file.exists():
        raise FileExistsError(
            f'{pretraining.file} exists already and is not overwritten: {ways_on(config, pretraining)}, or pass '
            '--overwrite to make it anew'
        )
    source, note = args.source, dict(row=model.name)
    if source is None:
        entry = zoo.get(pretraining.config.stem)
        status, source = pretrain(pretraining, entry, args)
        if source is None:
            return status
        note.update(pretrained_with=pretraining.config.name, data=entry.data if entry else '')
    published, notes = publish_backbone(source, cfg, model.name, pretraining.file, note)
    print(light('terminal').printable('\n'.join([published.text(), *notes])))
    print(f'{published.path}: fits the backbone of {model.name} key by key; {ways_on(config, pretraining)}')


def pretrain(pretraining, entry, args):
    """Say what a pretraining costs, and train it; returns the exit status and the checkpoint, None if there is none."""
    from mmnorm import engine
    from mmnorm.engine.settings import merge_options
    from mmnorm.zoo.pretraining import describe_cost

    if find_spec('mmpretrain') is None:
        engine.stop(
            "pretraining needs mmpretrain: pip install 'mmnorm[onedl-pretrain]' or 'mmnorm[classic-pretrain]', as the "
            'set that you have'
        )
    classifier = engine.parse_config(pretraining.config)
    merge_options(classifier, options_of(args.cfg_options))
    print(describe_cost(pretraining, entry, classifier, args.processes or 1), flush=True)
    work_dir = args.work_dir or str(Path('work_dirs', pretraining.config.stem))
    more = ['--amp'] * args.amp + ['--check', args.processes or 1] * args.check
    try:
        status = train(pretraining.config, work_dir, args.processes, args.cfg_options, more)
    except KeyboardInterrupt:
        raise KeyboardInterrupt('the same command continues') from None
    if status or args.check:
        if not args.check:
            print('nothing is published; the same command continues', file=sys.stderr)
        return status, None
    checkpoint = engine.newest_checkpoint(work_dir, print)
    if checkpoint is None:
        engine.stop(f'{work_dir} has no checkpoint of the training to publish')
    return 0, checkpoint


def find_row(name, zoo):
    """The entry (Model) of a row, and its config, or of one that inherits from it (Path)."""
    from mmnorm.zoo import find_model

    from .zoo import find

    model = find_model(name, zoo) if Path(name).is_file() else None
    if model:
        return model, Path(name)
    model = find(name, zoo)
    return model, Path(light('terminal').config(model.config.removeprefix('configs/')))


def options_of(words):
    """Values (dict or None) of KEY=VALUE words, as ``--cfg-options`` reads them."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=Options)
    return parser.parse_args(['--cfg-options', *words]).cfg_options if words else None


def ways_on(config, pretraining):
    """What to do with a published file (str)."""
    option = f' --cfg-options {pretraining.option}' if pretraining.option else ''
    return f'{light("terminal").command("train")} {config}{option} starts from it'
