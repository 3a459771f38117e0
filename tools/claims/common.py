"""What scripts that show a paper's claim at small scale share: the digits, the results' header, JSON and plots."""

import contextlib
import datetime
import fcntl
import io
import json
import os
import re
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from a checkout without installing

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from PIL import Image  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.functional import cross_entropy, interpolate  # noqa: E402

from mmnorm.engine import stop  # noqa: E402
from mmnorm.engine.processes import end_with_parent  # noqa: E402
from mmnorm.engine.record import describe_device, versions  # noqa: E402
from mmnorm.files import replacing, write_text  # noqa: E402
from mmnorm.report.plots import STYLE  # noqa: E402

RESULTS = ROOT / 'tools/claims/results'
THREADS = 1  # so that a training gives the same figures wherever it runs
DIGITS = 4  # significant ones, of every number in the results
DPI = 150
SCOPES = 'IN', 'LN', 'BN'  # of SN's ratios, in their order
PALETTE = 48  # the most frequent colors of a plot, which all of its pixels take: half the bytes of full color


def load_digits():
    """Return scikit-learn's scanned digits: images (1797, 1, 8, 8), the gray values over 16, and labels (1797,).

    They are in [0, 1] and not standardized, for all arms of all experiments.
    """
    from sklearn.datasets import load_digits as load

    found = load()
    return torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(found.target)


def place_digits(digits, side, size, noise, generator):
    """Digits (N, 1, 8, 8), each scaled to a size and somewhere on an image under noise: (N, 1, side, side).

    ``noise`` is its standard deviation; it lies around and over the digits.
    """
    images = noise * torch.randn(len(digits), 1, side, side, generator=generator)
    places = torch.randint(0, side - size + 1, (len(digits), 2), generator=generator).tolist()
    for image, digit, (top, left) in zip(images, interpolate(digits, size=(size, size), mode='bilinear'), places):
        image[:, top : top + size, left : left + size] += digit
    return images


class Classifier(nn.Module):
    """A backbone, global average pooling and a linear layer: (N, C, H, W) to logits (N, 10)."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(backbone.feat_dim, 10)

    def forward(self, x):
        return self.fc(self.backbone(x)[-1].mean((2, 3)))


def init_weights(backbone):
    """Initialize a backbone of a host without the line that mmengine logs for each parameter."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    backbone.init_weights()
    logger.setLevel(level)


def fit(model, images, labels, lr, batch_size, epochs, momentum=0.9, weight_decay=1e-4, before_step=None):
    """Train a classifier by SGD under a one-cycle schedule; what of an epoch is less than a batch is left out.

    ``before_step(share)`` is told how much of the training is behind it, from 0 to 1.
    """
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=momentum, weight_decay=weight_decay)
    batches = len(images) // batch_size
    steps = epochs * batches
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for epoch in range(epochs):
        for number, batch in enumerate(torch.randperm(len(images))[: batches * batch_size].split(batch_size)):
            if before_step:
                before_step((epoch * batches + number) / max(1, steps - 1))
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model, images, labels):
    """Percentage of right answers in evaluation mode."""
    model.eval()
    predicted = torch.cat([model(batch).argmax(1) for batch in images.split(200)])
    return 100 * (predicted == labels).float().mean().item()


def add_common_arguments(parser, name, seeds):
    """Add what every claim script understands: --seeds, --tiny, --out and --plot-only."""
    parser.add_argument(
        '--seeds',
        nargs='+',
        type=int,
        default=list(range(seeds)),
        metavar='N',
        help=f'of initialization and data (default: 0 to {seeds - 1})',
    )
    parser.add_argument('--tiny', action='store_true', help='seconds instead of minutes: to see that the script runs')
    parser.add_argument(
        '--out',
        type=Path,
        default=RESULTS,
        metavar='DIR',
        help=f'for {name}.json and its plots (default: tools/claims/results)',
    )
    parser.add_argument('--plot-only', action='store_true', help=f'draw what {name}.json in --out already holds')


def begin(args, name):
    """Make the folder of the results and take :data:`THREADS`; returns where the results of a script are (Path)."""
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(THREADS)
    return args.out / f'{name}.json'


def header(script, argv, seeds):
    """What the figures depend on: command, seeds, machine and versions."""
    return dict(
        command=' '.join(['python', f'tools/claims/{script}.py', *argv]),
        date=str(datetime.date.today()),
        seeds=seeds,
        threads=torch.get_num_threads(),
        device=describe_device(),
        versions=versions(),
    )


def read_results(path, args, settings, empty, script=None):
    """What the results of a script hold already, or what those of a new run start with.

    Args:
        path (Path): The JSON file.
        args (Namespace): Of the script.
        settings (Sequence[str]): Names of the arguments that all of its figures depend on.
        empty (dict): What a new run has beside its header.
        script (str): Its name; default: that of the file.

    Raises:
        SystemExit: The file was made with other settings.
    """
    settings = {name: getattr(args, name) for name in settings}
    if not path.is_file():
        return dict(about=dict(header(script or path.stem, sys.argv[1:], args.seeds), settings=settings), **empty)
    results = json.loads(path.read_text())
    if results['about']['settings'] != settings:
        stop(
            f'{path} was made with {results["about"]["settings"]}, which is not what was asked for now: '
            f'{settings}. Give another --out, or the same settings.'
        )
    return results


def record(path, read, kind, row):
    """Write a row to the results, to which processes of other seeds write as well.

    Args:
        path (Path): Of the results.
        read (callable): Returns what they hold (dict).
        kind (str): The key of a list of rows, each with ``arm`` and ``seed``; a row of the same two is replaced.
        row (dict): The row.
    """
    lock = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        results = read()
        others = [other for other in results[kind] if (other['arm'], other['seed']) != (row['arm'], row['seed'])]
        results[kind] = sorted([*others, row], key=lambda row: (row['seed'], row['arm']))
        write_results(path, results)
    finally:
        os.close(lock)


def is_recorded(rows, arm, seed):
    """Whether a list of rows has that of an arm and a seed."""
    return any((row['arm'], row['seed']) == (arm, seed) for row in rows)


def run_seeds(args, run_seed, *more):
    """Call ``run_seed(args, seed, *more)`` for each of --seeds, in processes of their own, --jobs at a time."""
    run_all(args.jobs, run_seed, [(args, seed, *more) for seed in args.seeds])


def run_all(jobs, run, calls):
    """Call ``run(*call)`` for each of ``calls`` in processes of their own, so many at a time, in their order."""
    with ProcessPoolExecutor(jobs, get_context('spawn'), _begin_process, (os.getpid(),)) as pool:
        for done in [pool.submit(run, *call) for call in calls]:
            done.result()


def _begin_process(parent):
    end_with_parent(parent)  # a pool's processes go on with their task otherwise
    warnings.simplefilter('ignore')
    torch.set_num_threads(THREADS)


@contextlib.contextmanager
def silence():
    """Keep pycocotools' tables off the screen."""
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def significant(values):
    """Round an array of any shape to DIGITS significant digits, as nested lists."""
    values = np.asarray(values, dtype=float)
    rounded = [float(f'{value:.{DIGITS}g}') for value in values.flat]
    return np.reshape(rounded, values.shape).tolist()


def over_seeds(rows, arm, metric):
    """Mean and standard deviation (dict) over seeds of an arm's metric; None before it has run."""
    values = [row['metrics'][metric] for row in rows if row['arm'] == arm]
    return mean_and_std(values) if values else None


def mean_ratios(layers):
    """Means of SN's ratios over layers (dict), as ``'IN in mean'`` and ``'IN in var'``; empty if there are none.

    Args:
        layers (collection[dict]): Values of :func:`mmnorm.norms.ratios`.
    """
    return {
        f'{scope} in {what}': share
        for what in (('mean', 'var') if layers else ())
        for scope, share in zip(SCOPES, torch.stack([layer[what] for layer in layers]).mean(0).tolist())
    }


def mean_and_std(values):
    """Mean and standard deviation (of the sample; 0 for a single one) over the first axis, the seeds.

    Args:
        values (array): (seeds, ...).

    Returns:
        dict: ``mean`` and ``std``, rounded, each of the shape of the other axes.
    """
    values = np.asarray(values, dtype=float)
    std = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])
    return dict(mean=significant(values.mean(axis=0)), std=significant(std))


def points(axes, rows, places, color, label, metric, **style):
    """A line through the means of arms and a point for each seed; ``places``: arm to x. Nothing before all have run."""
    means = [over_seeds(rows, arm, metric) for arm in places]
    if not all(means):
        return
    axes.plot(list(places.values()), [value['mean'] for value in means], color=color, label=label, **style)
    for arm, place in places.items():
        values = [row['metrics'][metric] for row in rows if row['arm'] == arm]
        axes.plot([place] * len(values), values, '.', color=color, markersize=4)


def write_results(path, content):
    """Write a JSON file atomically, each list of numbers on one line."""
    text = re.sub(r'\[[^\[\]{}"]*\]', lambda numbers: ' '.join(numbers.group().split()), json.dumps(content, indent=1))
    write_text(path, text.replace('[ ', '[').replace(' ]', ']') + '\n')


def write_png(path, size, draw, note=None):
    """Draw a figure in the report's style as a compact PNG; the same results give the same file.

    Args:
        path (Path): Target.
        size (tuple[float, float]): Width and height in inches.
        draw (callable): ``draw(figure)``.
        note (str): Stands below the panels.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout='constrained')
        draw(figure)
        if note:
            figure.supxlabel(note, fontsize='small', color=STYLE['axes.labelcolor'])
        drawn = io.BytesIO()
        figure.savefig(drawn, format='png', dpi=DPI)
    image = Image.open(drawn).convert('RGB')
    common = sorted(image.getcolors(image.width * image.height), reverse=True)[:PALETTE]
    palette = Image.new('P', (1, 1))
    palette.putpalette([value for _, color in common for value in color])
    with replacing(path) as partial:
        image.quantize(palette=palette, dither=Image.Dither.NONE).save(partial, format='png', optimize=True)
