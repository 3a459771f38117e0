#!/usr/bin/env python
"""Estimation shift of BN, its accumulation over depth, and how GN blocks it (paper xbn, Section 4 and Appendix A).

The paper's experiments on MNIST, on scikit-learn's 1,797 scanned 8 x 8 digits instead: MLPs of 20 layers and 128
neurons (A5: a CNN of 14), full-batch gradient descent. 'GNBN' has GN in place of the BNs of the odd layers.

- Setup one (Figures 2, 4, A1 to A7): all 1,797 digits are training set and test set.
- Setup two (Figures 3, 5): the training set is 32 to 1,024 of them, the test set stays all, those included.

Writes estimation_shift.json, and estimation_shift_*.png for each setup and for the appendix.
"""

import argparse
import copy
import json
import sys
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass, replace

import matplotlib
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, MultipleLocator, NullLocator, ScalarFormatter
from torch import nn
from torch.nn.functional import cross_entropy

# first of ours: it puts the checkout on the path
from common import add_common_arguments, begin, header, load_digits, mean_and_std, write_png, write_results
from mmnorm.report.plots import COLORS
from mmnorm.statistics import measure_shift

NAME = 'estimation_shift'
SEEDS = 3
TRAIN_SIZES = (32, 128, 256, 512, 1024)
SHOWN_SIZE = 128  # whose shifts are drawn over iterations
EARLY, LATE = 30, 10  # iterations: "the first 30 epochs" of Section 4.2.1, and the last ones
# The iterations after which shifts are measured: densely while they change fast
MEASURED = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 35, 40, 50, 60, 70, 80, 90, 100, 110, 120)
DEPTHS = matplotlib.colormaps['viridis_r']  # colors of layers: light ones are low
LABELS = dict(mu='ESM of μ', sigma='ESM of σ')


@dataclass(frozen=True)
class Experiment:
    """One network and its training.

    Attributes:
        figure: Of the paper.
        norm: 'BN', 'GNBN' or 'none'.
        train_size: Digits in the training set; None means all, the test set itself.
        network: 'mlp' or 'cnn'.
        layers: Number of normalized layers; a linear classifier follows.
        lr: Learning rate.
        alpha: Update factor of the running statistics (Eq. 3): torch's momentum.
        groups: Of the GNs of GNBN.
        iterations: Of full-batch gradient descent.
    """

    figure: str
    norm: str = 'BN'
    train_size: int = None
    network: str = 'mlp'
    layers: int = 20
    lr: float = 0.1
    alpha: float = 0.9
    groups: int = 4
    iterations: int = 80


SETUP_ONE = {
    'fig2': Experiment('Figure 2'),
    'fig4': Experiment('Figure 4', norm='GNBN'),
}
APPENDIX = {
    'a1': Experiment('Figure A1', lr=0.05),
    'a2': Experiment('Figure A2', alpha=0.1),
    # not in the paper: the digits leave next to no gap between the errors at alpha 0.9 that GN could close (Figure 4 a)
    'a2_gnbn': Experiment('Beside Figure A2', norm='GNBN', alpha=0.1),
    'a3': Experiment('Figure A3', alpha=0.5),
    'a4': Experiment('Figure A4', layers=10),
    'a5': Experiment('Figure A5', network='cnn', layers=14, iterations=120),
    'a6': Experiment('Figure A6', norm='GNBN', groups=1),
    'a7': Experiment('Figure A7', norm='GNBN', groups=16),
}
SETUP_TWO = {
    f'{norm.lower()}_{size}': Experiment(figure, norm=norm, train_size=size)
    for norm, figure in (('BN', 'Figure 3'), ('GNBN', 'Figure 5'))
    for size in TRAIN_SIZES
}
# Section 4.2.1 names one network without BN. Without norms these 20 layers do not learn by the recipe of the others
# (chance level after 80 iterations), so this arm has its own: He's initialization, 1,000 iterations at 0.02.
NO_NORM = {
    f'none_{size}': Experiment('Section 4.2.1', norm='none', train_size=size, lr=0.02, iterations=1000)
    for size in TRAIN_SIZES
}
EXPERIMENTS = SETUP_ONE | APPENDIX | SETUP_TWO | NO_NORM


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, NAME, SEEDS)
    return parser.parse_args(argv)


def build_network(experiment, in_channels):
    """Linear (or 3 x 3 conv), norm and ReLU for each layer, counted from 1, then the classifier."""

    def norm(number, channels):
        if experiment.norm == 'none':
            return nn.Identity()
        if experiment.norm == 'GNBN' and number % 2:
            return nn.GroupNorm(experiment.groups, channels)
        bn = nn.BatchNorm1d if experiment.network == 'mlp' else nn.BatchNorm2d
        return bn(channels, momentum=experiment.alpha)

    modules = OrderedDict()
    channels = in_channels
    for number in range(1, experiment.layers + 1):
        if experiment.network == 'mlp':
            width, layer = 128, nn.Linear(channels, 128)
        else:
            # The paper does not describe its CNN: here three scales (8, 4, 2 pixels) of 16, 32 and 64 channels
            scale = 3 * (number - 1) // experiment.layers
            width = 16 * 2**scale
            layer = nn.Conv2d(channels, width, 3, stride=2 if scale and width != channels else 1, padding=1)
        modules |= {f'linear{number}': layer, f'norm{number}': norm(number, width), f'relu{number}': nn.ReLU()}
        channels = width
    if experiment.network == 'cnn':
        modules |= {'pool': nn.AdaptiveAvgPool2d(1), 'flatten': nn.Flatten()}
    network = nn.Sequential(modules | {'classifier': nn.Linear(channels, 10)})
    if experiment.norm == 'none':
        for module in network:
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
                nn.init.zeros_(module.bias)
    return network


def error(logits, labels):
    """Classification error in percent."""
    return 100 * (logits.argmax(1) != labels).float().mean().item()


@torch.no_grad()
def error_by_batch(network, images, labels):
    """Error in training mode: all BNs normalize by the statistics of these images. The network stays as it is."""
    return error(copy.deepcopy(network).train()(images), labels)


@torch.no_grad()
def evaluate(network, images, labels):
    """Error in evaluation mode."""
    return error(network.eval()(images), labels)


def measure(network, images, input_statistics=None):
    """Shifts of the BN layers by their number in the network; 0 is the input, if its statistics are given."""
    shifts = measure_shift(network, [images], input_statistics=input_statistics)
    return {0 if name == 'input' else int(name.removeprefix('norm')): shift for name, shift in shifts.items()}


def run(experiment, seed, images, labels):
    """Train once, by full-batch gradient descent, and measure after each step.

    The running statistics are then those of the networks before the step, as Eq. 3 has it.

    Args:
        experiment (Experiment): What to train.
        seed (int): Of the initialization and of the choice of the training set, of which smaller ones are parts.
        images (Tensor): (N, 1, H, W), the test set.
        labels (Tensor): (N, ).

    Returns:
        dict: Over iterations: ``train_error`` in training mode and ``test_error`` in evaluation mode, of the same
        weights, in percent. Over the ``measured`` iterations: ``esm_mu`` and ``esm_sigma`` (iterations, BN layers). At
        the end: ``layers``, the numbers of the BN layers, their ``relative_sigma`` and ``train_set_sigma`` (the
        ESM_sigma if the training set stood in for the test set), ``input_sigma`` of layer 0, and ``batch_error``, the
        test error when the BNs normalize by the test set's own statistics. A network without norms has the final
        errors only.
    """
    if experiment.network == 'mlp':
        images = images.flatten(1)
    chosen = torch.arange(len(images))
    if experiment.train_size:
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: experiment.train_size]
    train_images, train_labels = images[chosen], labels[chosen]
    per_channel = [dim for dim in range(images.dim()) if dim != 1]
    input_statistics = train_images.mean(per_channel), train_images.var(per_channel, correction=0)

    torch.manual_seed(seed)
    network = build_network(experiment, images.shape[1])
    optimizer = torch.optim.SGD(network.parameters(), experiment.lr)
    measured = [iteration for iteration in MEASURED if iteration < experiment.iterations] + [experiment.iterations]
    found = dict(train_error=[], test_error=[], esm_mu=[], esm_sigma=[])
    for iteration in range(1, experiment.iterations + 1):
        optimizer.zero_grad()
        cross_entropy(network.train()(train_images), train_labels).backward()
        optimizer.step()
        if experiment.norm == 'none' and iteration < experiment.iterations:
            continue
        found['train_error'].append(error_by_batch(network, train_images, train_labels))
        found['test_error'].append(evaluate(network, images, labels))
        if experiment.norm != 'none' and iteration in measured:
            shifts = measure(network, images, input_statistics)
            layers = [number for number in shifts if number]
            found['esm_mu'].append([shifts[number].esm_mu for number in layers])
            found['esm_sigma'].append([shifts[number].esm_sigma for number in layers])
    if experiment.norm == 'none':
        return dict(train_error=found['train_error'], test_error=found['test_error'])
    on_training_set = measure(network, train_images)
    return found | dict(
        measured=measured,
        layers=layers,
        input_sigma=shifts[0].esm_sigma,
        relative_sigma=[shifts[number].relative_sigma for number in layers],
        train_set_sigma=[on_training_set[number].esm_sigma for number in layers],
        batch_error=error_by_batch(network, images, labels),
    )


def summarize(experiment, runs):
    """Mean and deviation over seeds of what :func:`run` returns.

    Returns:
        dict: ``setting``, and by the names of :func:`run`: errors over iterations; ESMs over the measured iterations
        (means, a list over BN layers for each) and at the end (``*_end``); ``gap_early`` and ``gap_late``: test minus
        training error over the first 30 and the last 10 iterations; ``growth_early`` (over the measured ones of the
        first 30) and ``growth_end``: ESM_sigma of the deepest quarter of the BN layers over that of the first quarter.
    """
    values = {key: np.array([found[key] for found in runs]) for key in runs[0]}
    train_error, test_error = values['train_error'], values['test_error']
    result = dict(
        setting=asdict(experiment),
        train_error=mean_and_std(train_error),
        test_error=mean_and_std(test_error),
        train_error_end=mean_and_std(train_error[:, -1]),
        test_error_end=mean_and_std(test_error[:, -1]),
    )
    if experiment.norm == 'none':
        return result
    gap = test_error - train_error
    esm_sigma = values['esm_sigma']
    quarter = max(1, esm_sigma.shape[2] // 4)
    growth = esm_sigma[:, :, -quarter:].mean(2) / esm_sigma[:, :, :quarter].mean(2)
    early = [iteration <= EARLY for iteration in runs[0]['measured']]
    return result | dict(
        batch_error_end=mean_and_std(values['batch_error']),
        gap_early=mean_and_std(gap[:, :EARLY].mean(1)),
        gap_late=mean_and_std(gap[:, -LATE:].mean(1)),
        growth_early=mean_and_std(growth[:, early].mean(1)),
        growth_end=mean_and_std(growth[:, -1]),
        layers=runs[0]['layers'],
        measured=runs[0]['measured'],
        esm_mu=mean_and_std(values['esm_mu'])['mean'],
        esm_sigma=mean_and_std(esm_sigma)['mean'],
        esm_mu_end=mean_and_std(values['esm_mu'][:, -1]),
        esm_sigma_end=mean_and_std(esm_sigma[:, -1]),
        input_sigma=mean_and_std(values['input_sigma']),
        relative_sigma_end=mean_and_std(values['relative_sigma']),
        train_set_sigma_end=mean_and_std(values['train_set_sigma']),
    )


def describe(setting):
    """Figure and network, and what the setting has beside the paper's default."""
    default = Experiment('')
    text = f'{setting["figure"]}: {setting["norm"]}'
    if setting['norm'] == 'GNBN':
        text += f', {setting["groups"]} group{"s" * (setting["groups"] > 1)}'
    if setting['lr'] != default.lr:
        text += f', learning rate {setting["lr"]}'
    if setting['alpha'] != default.alpha:
        text += f', α = {setting["alpha"]}'
    if (setting['layers'], setting['network']) != (default.layers, default.network):
        text += f', {setting["layers"]}-layer {setting["network"].upper()}'
    return text


def draw_errors(axes, result, color, label):
    """Test error over iterations with a band, training error dotted."""
    mean, std = (np.array(result['test_error'][key]) for key in ('mean', 'std'))
    iterations = range(1, len(mean) + 1)
    axes.fill_between(iterations, np.maximum(mean - std, 0), mean + std, color=color, alpha=0.15, linewidth=0)
    axes.plot(iterations, mean, color=color, label=label)
    axes.plot(iterations, result['train_error']['mean'], color=color, linestyle=':')
    axes.set(ylabel='Error (%)', ylim=(0, None))
    set_iterations(axes, len(mean))


def draw_shifts(axes, result, statistic):
    """ESM over iterations, a line for each BN layer, colored by its depth."""
    for number, curve in zip(result['layers'], np.transpose(result[f'esm_{statistic}'])):
        axes.plot(result['measured'], curve, color=DEPTHS(number / Experiment.layers), linewidth=1.1)
    axes.set(ylabel=LABELS[statistic])
    set_iterations(axes, result['measured'][-1])


def set_iterations(axes, last):
    """A logarithmic axis, since the digits are learnt within few iterations, with plain numbers."""
    axes.set(xlabel='Iteration', xscale='log', xlim=(1, last))
    axes.set_xticks([*(tick for tick in (1, 2, 5, 10, 20, 40) if tick < last), last])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())


def draw_by_depth(axes, result, color, label):
    """ESM of the deviation at the end by layer, the input (layer 0) included."""
    mean, std = (np.array([result['input_sigma'][key], *result['esm_sigma_end'][key]]) for key in ('mean', 'std'))
    axes.errorbar([0, *result['layers']], mean, std, marker='o', markersize=3, elinewidth=1, color=color, label=label)
    axes.set(xlabel='Layer (0: the input)', ylabel=LABELS['sigma'])
    axes.xaxis.set_major_locator(MultipleLocator(5))


def share_scale(panels):
    """Give panels the same y axis."""
    limits = np.array([axes.get_ylim() for axes in panels])
    for axes in panels:
        axes.set_ylim(limits[:, 0].min(), limits[:, 1].max())


def add_depth_scale(figure, panels):
    """Show the colors of the layers beside some panels."""
    scale = ScalarMappable(Normalize(0, Experiment.layers), DEPTHS)
    bar = figure.colorbar(scale, ax=panels, label='Layer', ticks=MultipleLocator(5), fraction=0.02, pad=0.01)
    bar.outline.set_visible(False)


def draw_setup_one(figure, results, same_scale):
    """A row for each experiment: errors, ESM of the mean and of the deviation, as in Figures 2, 4 and A1 to A7."""
    grid = figure.subplots(len(results), 3, squeeze=False)
    for row, result in zip(grid, results):
        draw_errors(row[0], result, COLORS[0], 'test, evaluation mode')
        row[0].set_title(describe(result['setting']))
        for axes, statistic in zip(row[1:], LABELS):
            draw_shifts(axes, result, statistic)
            axes.set_ylim(0, None)
    if same_scale:
        for column in grid.T:
            share_scale(column)
    lines = [Line2D([], [], color=COLORS[0], linestyle=style) for style in ('-', ':')]
    figure.legend(
        lines, ['test error, evaluation mode', 'training error, training mode'], loc='outside upper left', ncols=2
    )
    add_depth_scale(figure, grid)


def draw_setup_two(figure, results):
    """Errors and ESM by layer and by size of the training set, as in Figures 3 and 5."""
    (errors, *by_depth), (final, *over_iterations) = grid = figure.subplots(2, 3)
    for size, color in zip(TRAIN_SIZES, COLORS):
        draw_errors(errors, results[f'bn_{size}'], color, f'{size:,}')
        for norm, axes in zip(('bn', 'gnbn'), by_depth):
            draw_by_depth(axes, results[f'{norm}_{size}'], color, f'{size:,}')
    errors.set_title('Figure 3 (a): BN; dotted: training')
    by_depth[0].set_title('Figure 3 (b): BN, at the end')
    by_depth[1].set_title('Figure 5 (a): GNBN, at the end')
    by_depth[1].legend(title='Training digits', ncols=2)

    for prefix, key, label, style in (
        ('bn', 'test_error_end', 'BN', dict(color=COLORS[0])),
        ('bn', 'batch_error_end', "BN by the test set's statistics", dict(color=COLORS[0], linestyle=':')),
        ('gnbn', 'test_error_end', 'GNBN', dict(color=COLORS[1])),
        ('none', 'test_error_end', 'no norm (recipe of its own)', dict(color=COLORS[3], linestyle='--')),
    ):
        values = [results[f'{prefix}_{size}'][key] for size in TRAIN_SIZES]
        final.errorbar(
            TRAIN_SIZES,
            [value['mean'] for value in values],
            [value['std'] for value in values],
            marker='o',
            markersize=3.5,
            elinewidth=1,
            capsize=2,
            label=label,
            **style,
        )
    final.set(
        title='Figure 5 (b): at the end',
        xlabel='Training digits',
        ylabel='Test error (%)',
        xscale='log',
        ylim=(0, None),
    )
    final.set_xticks(TRAIN_SIZES, [f'{size:,}' for size in TRAIN_SIZES])
    final.xaxis.set_minor_locator(NullLocator())
    final.legend(fontsize='x-small')

    for (norm, title), axes in zip({'bn': 'Figure 3 (c): BN', 'gnbn': 'GNBN'}.items(), over_iterations):
        draw_shifts(axes, results[f'{norm}_{SHOWN_SIZE}'], 'sigma')
        axes.set_title(f'{title}, {SHOWN_SIZE} digits')
        axes.set_yscale('log')  # the first iterations have far more than the rest
        axes.yaxis.set_major_formatter(FormatStrFormatter('%g'))
    for axes in by_depth:
        axes.set_ylim(0, None)
    share_scale(by_depth)
    share_scale(over_iterations)
    add_depth_scale(figure, grid[1])


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    path = begin(args, NAME)
    if not args.plot_only:
        images, labels = load_digits()
        experiments = EXPERIMENTS
        if args.tiny:
            images, labels = images[:256], labels[:256]
            experiments = {
                name: replace(experiment, layers=4, iterations=4) for name, experiment in EXPERIMENTS.items()
            }
        results = {}
        for name, experiment in experiments.items():
            start = time.perf_counter()
            results[name] = summarize(experiment, [run(experiment, seed, images, labels) for seed in args.seeds])
            test_error = results[name]['test_error_end']
            print(
                f'{name:9} test error {test_error["mean"]:5.2f} +- {test_error["std"]:.2f} %, '
                f'{time.perf_counter() - start:.0f} s',
                flush=True,
            )
        write_results(path, dict(about=header(NAME, argv, args.seeds), results=results))
    content = json.loads(path.read_text())
    results = content['results']
    plots = {
        'setup_one': (4.8, lambda figure: draw_setup_one(figure, [results[name] for name in SETUP_ONE], True)),
        'appendix': (14.0, lambda figure: draw_setup_one(figure, [results[name] for name in APPENDIX], False)),
        'setup_two': (6.0, lambda figure: draw_setup_two(figure, results)),
    }
    seeds = len(content['about']['seeds'])
    note = f'Digits; mean over {seeds} seed{"s" * (seeds > 1)}; bands and bars: standard deviation'
    for name, (height, draw) in plots.items():
        plot = path.with_name(f'{NAME}_{name}.png')
        write_png(plot, (9.6, height), draw, note)
        print(plot)


if __name__ == '__main__':
    main()
