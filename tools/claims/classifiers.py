#!/usr/bin/env python
"""What papers sn, rbn and bgn claim of their norms in classification, in miniature.

A small ResNet-18 learns 1,000 of scikit-learn's scanned digits, each somewhere on 32 x 32 pixels under noise, and is
tested on the other 797. Arms differ in their norms, their batch sizes or both; the learning rate follows the batch size
linearly, as in the papers, and all see equally many images.

- sn: SN holds at batch 2 where BN falls, and BN's share of SN falls with the batch (Table II, Figures 1 and 4).
- hard: ratios that are fixed at their largest are as good after fine-tuning, worse from scratch; those of SSN end there
  by themselves (sn, Table III).
- rbn: RBN over BN, centering over scaling, and which stages (rbn, Tables 2 and 4).
- bgn: few groups for small batches, many for large ones; BGN by its rule beside others (bgn, Tables 1 and 2).

Writes classifiers.json and a plot of each claim. What the results already hold is not run again: what was interrupted
goes on.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from functools import partial

import torch
from mmdet.models.backbones import ResNet
from torch import nn

# first of ours: it puts the checkout on the path
from common import (
    SCOPES,
    Classifier,
    accuracy,
    add_common_arguments,
    begin,
    fit,
    init_weights,
    load_digits,
    mean_ratios,
    over_seeds,
    place_digits,
    points,
    read_results,
    record,
    run_seeds,
    write_png,
)
from mmnorm import replace_norms
from mmnorm.norms import harden, ratios, set_sparsity
from mmnorm.norms.groups import groups_for
from mmnorm.report.plots import COLORS, MARKERS

NAME = 'classifiers'
SEEDS = 3
SETTINGS = 'epochs', 'tuning_epochs', 'train_images'
SPLIT_SEED = 0  # the same digits, places and noise for all
SIDE, DIGIT, NOISE = 32, 20, 0.5  # pixels, pixels, and the standard deviation on gray values from 0 to 1
WIDTH = 8  # channels of the first stage; a ResNet-18 has 64
LEARNING_RATE, BATCH_SIZE = 0.1, 32  # of so many images
TUNING = 0.1  # of the learning rate, in the epochs of fine-tuning


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        norm: Its name, and its arguments.
        batch_size: Images in a step.
        stage: The backbone's stage, 1 to 4, that has the norm, with BN in the others; 0: all have it, the stem too.
        ratios: What becomes of ratios: '' as the norm has it; 'tuned' fixed at their largest behind the training,
            before the epochs of fine-tuning; 'picked' fixed from the start where those of the arm 'tuned' ended;
            'sparse' SSN's, whose sparsity grows to its end over the training.
        tunes: Whether epochs of fine-tuning follow.
    """

    norm: dict
    batch_size: int = BATCH_SIZE
    stage: int = 0
    ratios: str = ''
    tunes: bool = False


def over_batches(norms, sizes):
    """Arms of each norm at each batch size, by name; a norm is a dict, or a function of the batch size."""
    return {
        f'{name}, batch {size}': Arm(norm(size) if callable(norm) else norm, size)
        for name, norm in norms.items()
        for size in sizes
    }


BN, GN = dict(type='BN'), dict(type='GN', num_groups=4)  # GN: as many groups a layer as there are channels in a group
SN_SIZES, BGN_SIZES, GROUPS = (2, 4, 8, 32), (2, 8, 32, 128), (1, 8, 64, 512)
CLAIMS = {
    'sn': over_batches(dict(BN=BN, GN=GN, SN=dict(type='SN')), SN_SIZES),
    'hard': {
        'SN': Arm(dict(type='SN'), tunes=True),
        'SN, hard after training': Arm(dict(type='SN'), ratios='tuned', tunes=True),
        'SN, hard from scratch': Arm(dict(type='SN'), ratios='picked', tunes=True),
        'SSN': Arm(dict(type='SSN'), ratios='sparse', tunes=True),
    },
    'rbn': {
        'BN': Arm(BN),
        'BN + scaling': Arm(dict(type='RBN', center=False)),
        'BN + centering': Arm(dict(type='RBN', scale=False)),
        'RBN': Arm(dict(type='RBN')),
        'RBN*': Arm(dict(type='RBN', scale_stat='channel_std')),
        **{f'RBN in stage {stage}': Arm(dict(type='RBN'), stage=stage) for stage in (1, 2, 3, 4)},
    },
    'bgn': {
        **{
            f'BGN, {groups} groups, batch {size}': Arm(dict(type='BGN', num_groups=groups), size)
            for groups in GROUPS
            for size in (BGN_SIZES[0], BGN_SIZES[-1])
        },
        **over_batches(
            {
                'BN': BN,
                'GN': GN,
                'GBGN': lambda size: dict(type='GBGN', num_groups=4, batch_groups=size),
                'BGN': lambda size: dict(type='BGN', num_groups=groups_for(size)),
            },
            BGN_SIZES,
        ),
    },
}


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, NAME, SEEDS)
    parser.add_argument('--claims', nargs='+', choices=CLAIMS, default=list(CLAIMS), help='default: all')
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='seeds at a time (default: %(default)s)')
    for name, default in zip(SETTINGS, (10, 5, 1000)):
        parser.add_argument(
            f'--{name.replace("_", "-")}', type=int, default=default, metavar='N', help='default: %(default)s'
        )
    args = parser.parse_args(argv)
    if args.tiny:
        args.epochs, args.tuning_epochs, args.train_images = 1, 1, 128
    return args


def load_data(train_images):
    """Training images and labels, test images and labels; images are (N, 1, 32, 32)."""
    images, labels = load_digits()
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    order = torch.randperm(len(images), generator=generator)
    images = place_digits(images, SIDE, DIGIT, NOISE, generator)
    train, test = order[:1000][:train_images], order[1000:]
    return images[train], labels[train], images[test], labels[test]


def build_classifier(norm, stage):
    """ResNet-18 for small images, (N, 1, H, W): its stem is one convolution and does not pool."""
    backbone = ResNet(
        depth=18, in_channels=1, stem_channels=WIDTH, base_channels=WIDTH, out_indices=(3,),
        norm_cfg=BN if stage else norm, norm_eval=False, zero_init_residual=False,
    )  # fmt: skip
    backbone.conv1 = nn.Conv2d(1, WIDTH, 3, padding=1, bias=False)
    backbone.maxpool = nn.Identity()
    model = Classifier(backbone)
    init_weights(backbone)
    if stage:
        arguments = {key: value for key, value in norm.items() if key != 'type'}
        replace_norms(model, norm['type'], f'backbone.layer{stage}.*', **arguments)
    return model


def train_arm(arm, seed, data, args, picks=None):
    """Train one network.

    Args:
        arm (Arm): How.
        seed (int): Of initialization and of the order of images.
        data (tuple): Of :func:`load_data`.
        args (Namespace): Has the settings.
        picks (list or None): For ``ratios='picked'``: of each layer the indices of mean's and variance's scope.

    Returns:
        tuple[Classifier, dict]: The network; its metrics: test ``accuracy`` in percent, and of SN's layers the means
        over layers of their ratios.
    """
    images, labels, *test = data
    torch.manual_seed(seed)
    model = build_classifier(arm.norm, arm.stage).to(memory_format=torch.channels_last)
    if arm.ratios == 'picked':
        with torch.no_grad():
            for layer, picked in zip(mixtures(model), picks):
                for weight, scope in zip((layer.mean_weight, layer.var_weight), picked):
                    weight.zero_()[scope] = 1
        harden(model)
    before_step = partial(set_sparsity, model) if arm.ratios == 'sparse' else None
    rate = LEARNING_RATE * arm.batch_size / BATCH_SIZE
    fit(model, images, labels, rate, arm.batch_size, args.epochs, before_step=before_step)
    if arm.ratios == 'tuned':
        harden(model)
    if arm.tunes:
        fit(model, images, labels, TUNING * rate, arm.batch_size, args.tuning_epochs)
    return model, dict(accuracy=accuracy(model, *test)) | mean_ratios(ratios(model).values())


def trained_elsewhere(results, arm, seed):
    """The row of the same arm of another claim, from the same seed; None if there is none."""
    for claim, arms in CLAIMS.items():
        for row in results[claim]:
            if row['seed'] == seed and arms[row['arm']] == arm:
                return row
    return None


def mixtures(model):
    """SN's layers, in order."""
    return [layer for layer in model.modules() if hasattr(layer, 'mean_weight')]


def picked(model):
    """Of each SN layer the indices of mean's and variance's largest ratio."""
    return [[int(weight.argmax()) for weight in (layer.mean_weight, layer.var_weight)] for layer in mixtures(model)]


def read(args, path):
    """What the results hold already (:func:`common.read_results`)."""
    return read_results(path, args, SETTINGS, {claim: [] for claim in CLAIMS})


def run_seed(args, seed, path):
    """Run what the results lack of a seed."""
    data = load_data(args.train_images)
    for claim in args.claims:
        for name, arm in CLAIMS[claim].items():
            results = read(args, path)
            found = {row['arm']: row for row in results[claim] if row['seed'] == seed}
            if name in found:
                continue
            twin = trained_elsewhere(results, arm, seed)
            if twin:
                record(path, partial(read, args, path), claim, dict(twin, arm=name))
                continue
            start = time.monotonic()
            picks = next((row['picks'] for row in found.values() if 'picks' in row), None)
            model, metrics = train_arm(arm, seed, data, args, picks)
            row = dict(
                arm=name,
                seed=seed,
                seconds=round(time.monotonic() - start, 1),
                metrics={key: float(f'{value:.4g}') for key, value in metrics.items()},
            )
            if arm.ratios == 'tuned':
                row['picks'] = picked(model)
            record(path, partial(read, args, path), claim, row)
            print(f'{claim}: {name}, seed {seed}, {row["seconds"]:.0f} s: {row["metrics"]}', flush=True)


def print_tables(results):
    """Print all arms, mean and standard deviation over seeds."""
    from tabulate import tabulate

    for claim, arms in CLAIMS.items():
        rows = [
            [arm, *('{mean:.2f} ± {std:.2f}'.format(**value) if value else '' for value in values)]
            for arm in arms
            for values in [
                [over_seeds(of_arm(results[claim], arm, metric), arm, metric) for metric in columns(results[claim])]
            ]
            if values and values[0]
        ]
        if rows:
            print(
                f'\n{claim}', tabulate(rows, ['', *columns(results[claim])], 'github', disable_numparse=True), sep='\n'
            )


def of_arm(rows, arm, metric):
    """The rows of an arm that have a metric."""
    return [row for row in rows if row['arm'] == arm and metric in row['metrics']]


def columns(rows):
    """All metrics that rows have."""
    return list(dict.fromkeys(metric for row in rows for metric in row['metrics']))


def draw_sn(rows, figure):
    """Accuracy over batch size, and SN's shares."""
    left, *right = figure.subplots(1, 3)
    for number, norm in enumerate(('BN', 'GN', 'SN')):
        places = {f'{norm}, batch {size}': place for place, size in enumerate(SN_SIZES)}
        points(left, rows, places, COLORS[number], norm, 'accuracy', marker=MARKERS[number])
    left.set(title='Table II', ylabel='Test accuracy (%)')
    left.legend()
    right[1].sharey(right[0])
    places = {f'SN, batch {size}': place for place, size in enumerate(SN_SIZES)}
    for axes, what in zip(right, ('mean', 'var')):
        for number, scope in enumerate(SCOPES):
            points(axes, rows, places, COLORS[number + 3], scope, f'{scope} in {what}', marker=MARKERS[number])
        axes.axhline(1 / len(SCOPES), color='gray', linewidth=0.8, linestyle=':')  # where they start
        axes.set(title=f'Figure 4: shares in {dict(mean="the mean", var="the variance")[what]}')
    right[0].legend()
    for axes in (left, *right):
        axes.set_xticks(range(len(SN_SIZES)), SN_SIZES)
        axes.set_xlabel('Images in a batch')


def draw_bars(claim, title, rows, figure):
    """A bar for each arm, a point for each seed."""
    axes = figure.subplots()
    for place, arm in enumerate(CLAIMS[claim]):
        value = over_seeds(rows, arm, 'accuracy')
        if value:
            axes.plot(value['mean'], place, '|', color=COLORS[0], markersize=16, markeredgewidth=3)
            values = [row['metrics']['accuracy'] for row in rows if row['arm'] == arm]
            axes.plot(values, [place] * len(values), 'o', color=COLORS[4], markersize=4)
    axes.set_yticks(range(len(CLAIMS[claim])), CLAIMS[claim])
    axes.invert_yaxis()
    axes.set(title=title, xlabel='Test accuracy (%)')


def draw_bgn(rows, figure):
    """Accuracy over the number of groups, and over batch size."""
    left, right = figure.subplots(1, 2)
    for number, size in enumerate((BGN_SIZES[0], BGN_SIZES[-1])):
        places = {f'BGN, {groups} groups, batch {size}': place for place, groups in enumerate(GROUPS)}
        points(left, rows, places, COLORS[number], f'batch {size}', 'accuracy', marker=MARKERS[number])
    left.set_xticks(range(len(GROUPS)), GROUPS)
    left.set(title='Table 1: BGN', xlabel='Groups', ylabel='Test accuracy (%)')
    for number, norm in enumerate(('BN', 'GN', 'GBGN', 'BGN')):
        places = {f'{norm}, batch {size}': place for place, size in enumerate(BGN_SIZES)}
        points(right, rows, places, COLORS[number], norm, 'accuracy', marker=MARKERS[number])
    right.set_xticks(range(len(BGN_SIZES)), BGN_SIZES)
    groups = ', '.join(str(groups_for(size)) for size in BGN_SIZES)
    right.set(title=f'Table 2; BGN with {groups} groups', xlabel='Images in a batch')
    for axes in (left, right):
        axes.legend()


DRAWN = {
    'sn': ((10.8, 3.6), draw_sn),
    'hard': ((7, 2.4), partial(draw_bars, 'hard', 'Table III: ratios of SN')),
    'rbn': ((7, 3.8), partial(draw_bars, 'rbn', 'Tables 2 and 4: RBN')),
    'bgn': ((9, 3.6), draw_bgn),
}


def draw(results, folder):
    """Write the plot of each claim to a folder."""
    seeds = len(results['about']['seeds'])
    for claim, (size, panels) in DRAWN.items():
        if results[claim]:
            note = f'ResNet-18 on noisy digits; points: {seeds} seed{"s" * (seeds > 1)}; lines and bars: their means'
            write_png(folder / f'{NAME}_{claim}.png', size, partial(panels, results[claim]), note)


def main(argv=None):
    args = parse_args(sys.argv[1:] if argv is None else argv)
    path = begin(args, NAME)
    if not args.plot_only:
        read(args, path)  # before hours: whether it goes on there
        run_seeds(args, run_seed, path)
    results = json.loads(path.read_text())
    print_tables(results)
    draw(results, args.out)


if __name__ == '__main__':
    main()
