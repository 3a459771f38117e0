"""The page of what SN and RBN layers have learned, from the plain tables of ``mmnorm.statistics.learned``."""

import itertools
import json
import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmnorm.files import write_together
from mmnorm.terminal import command

from .page import render
from .plots import COLORS, COLUMNS, PANEL, STYLE, as_svg, name_handles

NORMALIZERS = ('IN', 'LN', 'BN')  # in COLORS' order, everywhere on the page
MOMENTS = dict(mean='Mean', var='Variance')
WIDTH = COLUMNS * PANEL[0]  # inches
MAX_LABELS = 130  # layers, more of which are not named in a plot
MAX_CHANNEL_PANELS = 6
RBN_PANELS = {  # title: label, column, color
    'Centering calibration': (('$w_m$', 'center_weight', COLORS[0]), ('$|w_m|$', 'abs_center_weight', COLORS[1])),
    'Scaling calibration, weight': (('$w_v$', 'scale_weight', COLORS[0]), ('$|w_v|$', 'abs_scale_weight', COLORS[1])),
    'Scaling calibration, bias': (('$w_b$', 'scale_bias', COLORS[0]),),
}


def write_weights(content, out):
    """Write ``norm_weights.html`` and ``norm_weights.json``, both or none.

    Args:
        content (dict): ``config`` (str); ``notes`` (list[str]); ``snapshots`` (list[dict]), in the order of the
            training, each with ``name`` and the tables of :func:`mmnorm.statistics.learned.norm_weights`; ``spread``,
            that of :func:`mmnorm.statistics.learned.measure_spread` as lists, or None.
        out (str | Path): The folder to write to; made if it is not there.

    Returns:
        Path: Of the page, which needs no other file and no network.
    """
    snapshots = content['snapshots']
    last = snapshots[-1]
    changes = [None, *itertools.starmap(count_changes, itertools.pairwise(snapshots))]
    context = dict(content, last=last, changes=changes, harden=f'{command("weights")} harden')
    if last['sn']:
        context |= dict(
            ratios=draw_ratios(last['sn']),
            by_part=draw_averages(last['sn_by_part']),
            by_field=draw_averages(last['sn_by_field']),
            hard=draw_hard_ratios(snapshots),
        )
    if last['rbn']:
        context |= dict(rbn=draw_rbn(last['rbn']))
    if len(snapshots) > 1:
        context |= dict(
            dynamics=draw_dynamics(snapshots) if last['sn'] else None,
            rbn_dynamics=draw_rbn_dynamics(snapshots) if last['rbn'] else None,
        )
    if content['spread']:
        context |= dict(
            spread_by_layer=draw_spread(content['spread'], last['rbn']), channels=draw_channels(content['spread'])
        )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    page = out / 'norm_weights.html'
    content = json.dumps(finite(content), indent=1) + '\n'
    write_together({page: render('learned.html.j2', context), page.with_suffix('.json'): content})
    return page


def finite(tree):
    """Return a tree of plain values with None for numbers that JSON does not have, infinite ones and NaN."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def count_changes(earlier, later):
    """Return how many layers pick another normalizer than in an earlier snapshot, for the mean and for the variance."""
    picked = {row['name']: row for row in earlier['sn']}
    return {
        moment: sum(row[f'{moment}_pick'] != picked[row['name']][f'{moment}_pick'] for row in later['sn'])
        for moment in MOMENTS
    }


def draw_ratios(rows):
    """Return the plot (SVG bytes) of SN's ratios and their divergence by layer (sn, Fig. 5 and 7c)."""
    with matplotlib.rc_context(STYLE):
        divergences = [row['kl'] for row in rows]
        diverge = any(divergence and math.isfinite(divergence) for divergence in divergences)
        heights = (2.5, 2.5, 2) if diverge else (2.5, 2.5)  # hardened layers have no finite one
        figure = Figure(figsize=(WIDTH, sum(heights)), layout='constrained')
        panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        places = range(len(rows))
        for (moment, title), axes in zip(MOMENTS.items(), panels):
            ratios = np.array([row[moment] for row in rows])
            for index in range(len(NORMALIZERS)):
                axes.bar(places, ratios[:, index], 0.86, ratios[:, :index].sum(axis=1), color=COLORS[index])
            axes.set(ylabel=title, ylim=(0, 1))
        if diverge:
            panels[2].bar(places, divergences, 0.86, color='#5b636d')
            panels[2].set(ylabel='Divergence (nats)')
        name_layers(panels, rows)
        _add_legend(figure, [dict(color=COLORS[index]) for index in range(len(NORMALIZERS))], NORMALIZERS)
        return as_svg(figure)


def draw_averages(averages):
    """Return the plot (SVG bytes) of SN's ratios averaged over groups of layers (sn, Fig. 1, 4, 10 and 11)."""
    labels = [f'{name} ({group["layers"]})' for name, group in averages.items()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + 0.3 * len(labels)), layout='constrained')
        for axes, (moment, title) in zip(figure.subplots(1, 2, sharey=True), MOMENTS.items()):
            ratios = np.array([group[moment] for group in averages.values()])
            for index in range(len(NORMALIZERS)):
                left = ratios[:, :index].sum(axis=1)
                bars = axes.barh(range(len(labels)), ratios[:, index], 0.78, left, color=COLORS[index])
                texts = [f'{100 * ratio:.0f}' if ratio > 0.04 else '' for ratio in ratios[:, index]]
                axes.bar_label(bars, texts, label_type='center', color='white', fontsize=9)
            axes.set(title=title, xlim=(0, 1))
            axes.set_yticks(range(len(labels)), labels)
            axes.xaxis.set_major_formatter(lambda share, _: f'{100 * share:.0f} %')
            axes.grid(visible=False)
        axes.invert_yaxis()
        _add_legend(figure, [dict(color=COLORS[index]) for index in range(len(NORMALIZERS))], NORMALIZERS)
        return as_svg(figure)


def draw_hard_ratios(snapshots):
    """Return the plot (SVG bytes) of what each layer prefers, in each snapshot (sn, Fig. 8)."""
    rows = snapshots[-1]['sn']
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.4 + 0.44 * len(snapshots)), layout='constrained')
        panels = figure.subplots(2, 1, sharex=True)
        for axes, (moment, title) in zip(panels, MOMENTS.items()):
            for line, snapshot in enumerate(snapshots):
                for place, row in enumerate(snapshot['sn']):
                    picks = row[f'{moment}_pick']
                    axes.bar(
                        [place] * len(picks),
                        0.86 / len(picks),
                        0.92,
                        [line - 0.43 + 0.86 * group / len(picks) for group in range(len(picks))],
                        color=[COLORS[NORMALIZERS.index(pick)] for pick in picks],
                    )
            axes.set_yticks(range(len(snapshots)), [snapshot['name'] for snapshot in snapshots])
            axes.set(ylim=(len(snapshots) - 0.5, -0.5), ylabel=title)
            axes.grid(visible=False)
        name_layers(panels, rows)
        _add_legend(figure, [dict(color=COLORS[index]) for index in range(len(NORMALIZERS))], NORMALIZERS)
        return as_svg(figure)


def draw_dynamics(snapshots):
    """Return the plot (SVG bytes) of SN's ratios over the snapshots, a panel for each part (sn, Fig. 7, 13 and 14)."""
    curves = [
        (dict(color=COLORS[index], linestyle=style), lambda group, m=moment, i=index: group[m][i])
        for moment, style in zip(MOMENTS, ('-', '--'))
        for index in range(len(NORMALIZERS))
    ]
    labels = [f'{name}, {title.lower()}' for title in MOMENTS.values() for name in NORMALIZERS]
    return _draw_over_snapshots(snapshots, 'sn_by_part', curves, labels)


def draw_rbn_dynamics(snapshots):
    """Return the plot (SVG bytes) of how large RBN's weights are over the snapshots, a panel for each part."""
    columns = {'$|w_m|$': 'abs_center_weight', '$|w_v|$': 'abs_scale_weight'}
    curves = [
        (dict(color=COLORS[index]), lambda group, c=column: group[c]) for index, column in enumerate(columns.values())
    ]
    return _draw_over_snapshots(snapshots, 'rbn_by_part', curves, list(columns))


def _draw_over_snapshots(snapshots, table, curves, labels):
    """Draw a panel for each group of a table of averages; a curve is its style and what takes it from the averages."""
    names = [snapshot['name'] for snapshot in snapshots]
    columns = 4
    rows = math.ceil(len(snapshots[-1][table]) / columns)
    with matplotlib.rc_context(STYLE | {'text.parse_math': True}):
        figure = Figure(figsize=(WIDTH, 0.6 + 1.9 * rows), layout='constrained')
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
        for group, axes in zip(snapshots[-1][table], grid):
            for style, take in curves:
                values = [take(snapshot[table][group]) for snapshot in snapshots]
                axes.plot(
                    range(len(names)),
                    [math.nan if value is None else value for value in values],
                    marker='o',
                    markersize=3.5,
                    **style,
                )
            axes.set_title(group, parse_math=False)
            axes.set_xticks(range(len(names)), names, rotation=30, ha='right', fontsize=8, parse_math=False)
        for axes in grid:  # the rest of the last row
            axes.axis('off')
        for axes in [axes for axes in figure.axes if axes.axison][-columns:]:  # the lowest of each column
            axes.tick_params(labelbottom=True)
        _add_legend(figure, [style for style, _ in curves], labels)
        return as_svg(figure)


def draw_rbn(rows):
    """Return the plot (SVG bytes) of RBN's weights by layer, averaged over channels (rbn, Fig. 3 and 4)."""
    with matplotlib.rc_context(STYLE | {'text.parse_math': True}):
        figure = Figure(figsize=(WIDTH, 7), layout='constrained')
        panels = figure.subplots(len(RBN_PANELS), 1, sharex=True)
        for axes, (title, curves) in zip(panels, RBN_PANELS.items()):
            for label, column, color in curves:
                values = [math.nan if row[column] is None else row[column] for row in rows]
                axes.plot(range(len(rows)), values, marker='o', markersize=3.5, linewidth=1, color=color, label=label)
            axes.set(ylabel=title.replace(', ', ',\n'))
            axes.legend(loc='upper left', ncols=len(curves), bbox_to_anchor=(0, 1), borderaxespad=0.1)
        name_layers(panels, rows)
        return as_svg(figure)


def draw_spread(spread, rows):
    """Return the plot (SVG bytes) of how far channel means spread in each layer: median and range of its channels."""
    rows = [row for row in rows if row['name'] in spread]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout='constrained')
        axes = figure.subplots()
        styles = []
        for index, stage in enumerate(('before', 'after')):
            low, median, high = np.transpose([np.percentile(spread[row['name']][stage], (10, 50, 90)) for row in rows])
            styles.append(dict(color=COLORS[index]))
            axes.fill_between(range(len(rows)), low, high, alpha=0.18, linewidth=0, **styles[-1])
            axes.plot(range(len(rows)), median, marker='o', markersize=3.5, **styles[-1])
        axes.set(ylabel='Standard deviation', ylim=(0, None))
        name_layers([axes], rows)
        _add_legend(figure, styles, ['before the scaling calibration', 'after'])
        return as_svg(figure)


def draw_channels(spread):
    """Return the plot (SVG bytes) of the spread of every channel's mean in some layers (rbn, Fig. 5)."""
    layers = list(spread)
    shown = [layers[round(place)] for place in np.linspace(0, len(layers) - 1, min(len(layers), MAX_CHANNEL_PANELS))]
    rows = math.ceil(len(shown) / COLUMNS)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.4 + 2.3 * rows), layout='constrained')
        grid = figure.subplots(rows, COLUMNS, squeeze=False).flat
        styles = [dict(color=COLORS[index]) for index in range(2)]
        for name, axes in zip(shown, grid):
            order = np.argsort(spread[name]['before'])
            for stage, style in zip(('before', 'after'), styles):
                axes.plot(np.array(spread[name][stage])[order], marker='.', markersize=4, linewidth=0.9, **style)
            axes.set(title=name, xlabel='Channel, sorted', ylabel='Standard deviation', ylim=(0, None))
        for axes in grid:  # the rest of the last row
            axes.axis('off')
        _add_legend(figure, styles, ['before the scaling calibration', 'after'])
        return as_svg(figure)


def name_layers(panels, rows):
    """Name the layers below the lowest of some panels, and above them the parts that they are in."""
    width = len(rows)
    for axes in panels:
        axes.set_xlim(-0.6, width - 0.4)
        axes.grid(visible=False, axis='x')
    panels[-1].tick_params(axis='x', length=0)
    labels = [short_name(row['name'], row['part']) for row in rows] if width <= MAX_LABELS else []
    panels[-1].set_xticks(
        range(len(labels)), labels, rotation=90, fontsize=min(8, max(5.2, 560 / width)), parse_math=False
    )
    start, taken = 0, -math.inf
    for part, members in itertools.groupby(rows, lambda row: row['part']):
        end = start + len(list(members))
        text, middle = part.rpartition('.')[2], (start + end - 1) / 2
        reach = 0.042 * len(text) * width / WIDTH  # half of the text's length, in layers
        raised = middle - reach < taken  # where it would run into the text before it
        taken = max(taken, middle + reach)
        panels[0].annotate(
            text,
            (middle, 1),
            (0, 13 if raised else 3),
            fontsize=8,
            ha='center',
            color='#4a5058',
            parse_math=False,
            xycoords=('data', 'axes fraction'),
            textcoords='offset points',
        )
        for axes in panels if end < width else ():
            axes.axvline(end - 0.5, color='#1c2126', linewidth=0.9, zorder=3)
        start = end


def short_name(name, part):
    """Return a layer's name without what its part says."""
    rest = name.split('.')[part.count('.') + 1 :]
    return '.'.join(rest) or name.rpartition('.')[2]


def _add_legend(figure, styles, labels):
    name_handles(figure, [Line2D([], [], **{'linewidth': 2.4} | style) for style in styles], labels)
