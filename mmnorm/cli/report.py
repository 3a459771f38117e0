"""Write a report of one or more runs: report.html (one self-contained page), report.md and report.csv.

Parts whose files are missing are left out; the report says which, and how to get them.
"""

import logging
from pathlib import Path

EXAMPLE = 'mmnorm report work_dirs/mask_rcnn_xbn_r50_digits'


def add_arguments(parser):
    parser.add_argument(
        'work_dirs',
        nargs='+',
        metavar='WORK_DIR',
        help='work dir of a run; with several, differences are from the first',
    )
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='folder of the report (default: WORK_DIR; with several, comparison beside the first)',
    )
    parser.add_argument('--names', nargs='+', metavar='NAME', help='names of the runs (default: the folder names)')
    parser.add_argument(
        '--images',
        type=int,
        default=12,
        metavar='N',
        help='images to show, ground truth beside predictions (default: %(default)s)',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.5,
        metavar='SCORE',
        help='lowest score of predictions that are drawn (default: %(default)s)',
    )
    parser.add_argument(
        '--figures', action='store_true', help='also write each plot as PDF and SVG for a paper, into DIR/figures'
    )


def check_args(args):
    """Raise ValueError for arguments that do not fit together."""
    if args.names and len(args.names) != len(args.work_dirs):
        raise ValueError(f'{len(args.names)} --names for {len(args.work_dirs)} work dirs')
    if args.images < 0:
        raise ValueError(f'--images {args.images} is negative')
    if not 0 <= args.score_thr <= 1:
        raise ValueError(f'--score-thr {args.score_thr} is not from 0 to 1')


def default_folder(work_dirs):
    """A run's report goes into its work dir; a comparison must not overwrite one, and goes beside the first."""
    first = Path(work_dirs[0])
    return first if len(work_dirs) == 1 else first.resolve().parent / 'comparison'


def run(args):
    """Write the report."""
    logging.basicConfig(format='%(message)s', level=logging.INFO)
    logging.getLogger('fontTools').setLevel(logging.WARNING)  # tells what it leaves out of a PDF
    check_args(args)
    from mmnorm.files import check_writable
    from mmnorm.report import load_run, write_report  # so late that --help needs nothing installed
    from mmnorm.terminal import working

    names = args.names or [None] * len(args.work_dirs)
    out = args.out or default_folder(args.work_dirs)
    check_writable(out)
    with working('reading runs, and evaluating their predictions'):
        runs = [load_run(work_dir, name) for work_dir, name in zip(args.work_dirs, names)]
        print(write_report(runs, out, args.images, args.score_thr, args.figures))
