"""Find out how well the BN statistics of a trained network fit, try repairs, and say what to do.

Works with any config and checkpoint of mmdet, mmseg or mmpretrain. Repairs are computed from training images and judged
on the test set by the config's own metric. Written to --out: diagnosis.html (one self-contained page) and
diagnosis.json; with --apply also the repaired checkpoint. The checkpoint itself is never changed.
"""

import shlex
from pathlib import Path

from .arguments import add_run_arguments, positive
from .light import light

EXAMPLE = 'mmnorm diagnose CONFIG CHECKPOINT --apply'


def add_arguments(parser):
    add_run_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='output folder; default: WORK_DIR/diagnosis')
    parser.add_argument(
        '--batches',
        type=positive,
        default=200,
        metavar='N',
        help='training batches per process to compute repairs from (default: %(default)s)',
    )
    parser.add_argument(
        '--batch-size',
        type=positive,
        metavar='N',
        help='images per training batch, if the training did not use the number in the config',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed for choosing training images (default: %(default)s)')
    parser.add_argument(
        '--apply',
        nargs='?',
        const='recommended',
        choices=['recommended', *light('engine.recommend').REPAIRS],
        help='also write the repaired checkpoint: with the recommended repair, or with this one',
    )


def options_of(args):
    """What a command that repeats a repair must be given."""
    options = ['--batches', str(args.batches), '--seed', str(args.seed)]
    if args.batch_size:
        options += ['--batch-size', str(args.batch_size)]
    if args.cfg_options:
        options += ['--cfg-options', *(f'{key}={value}' for key, value in args.cfg_options.items())]
    return options


def run(args):
    """Diagnose, and write what was found."""
    from mmnorm import engine
    from mmnorm.files import check_writable
    from mmnorm.report import write_diagnosis  # before hours of evaluation

    evaluation, original = engine.open_evaluation(args)
    out = Path(args.out or Path(evaluation.work_dir, 'diagnosis'))
    target = out / f'{Path(args.checkpoint).stem}_{args.apply}.pth'
    check_writable(out)
    if args.apply:
        engine.check_free(target, with_config=True)
    diagnosis = engine.Diagnosis(evaluation, original, args.batches)
    diagnosis.result.update(command=shlex.join(['mmnorm', 'diagnose', *args.argv]), options=options_of(args))
    result = diagnosis.run()
    if not engine.on_first_rank():
        return
    print(write_diagnosis(result, out))
    print(result['recommendation']['sentence'])
    if result['recommendation']['command']:
        print(result['recommendation']['command'])
    if result['recommendation']['levels']:
        print(result['recommendation']['levels'])
    if args.apply == 'recommended' and result['recommendation']['repair'] is None:
        print('Nothing was applied, as no repair is recommended.')
    elif args.apply:
        for path in diagnosis.apply(args.apply, target):
            print(path)
