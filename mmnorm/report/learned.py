"""The page of what SN, SW and RBN layers have learned, from the plain tables of ``mmnorm.statistics.learned``."""

import itertools
import json
import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mmnorm.files import write_together
from mmnorm.terminal import command

from .page import render
from .plots import (
    COLORS,
    HALF,
    LONGEST_NAME,
    MARKERS,
    ON_COLOR,
    PANEL,
    SOFT,
    STYLE,
    WIDTH,
    Drawing,
    area_style,
    as_svg,
    mark_parts,
    samples,
)
from .tables import made
from .texts import one_line

MEMBER_COLORS = dict(zip(('IN', 'LN', 'BN', 'BW', 'IW'), COLORS))  # everywhere on the page
MIXTURES = dict(sn='SN', sw='SW')  # by the name of the table
MOMENTS = dict(mean='Mean', var='Variance')
UNTRAINED = 0.02  # differences of ratios within a layer, up to which they are as good as untouched
MAX_LABELS = 130  # layers, more of which are not named in a plot
MAX_CHANNEL_PANELS = 6
RBN_PANELS = {  # average, average of sizes
    'Centering, w_m': ('center_weight', 'abs_center_weight'),
    'Scaling, w_v': ('scale_weight', 'abs_scale_weight'),
    'Scaling, w_b': ('scale_bias',),
}
SPREAD_STYLES = {
    name: (stage, dict(color=color, marker=marker, markersize=3.5))
    for name, stage, color, marker in zip(
        ('before the scaling calibration', 'after it'), ('before', 'after'), COLORS, MARKERS
    )
}


def write_weights(content, out):
    """Write ``norm_weights.html`` and ``norm_weights.json``, both or none.

    Args:
        content (dict): ``config``, ``command``, ``date`` and ``device`` (str); ``versions`` (dict); ``notes``
            (list[str]); ``snapshots`` (list[dict]), in the order of the training, each with ``name`` and the tables of
            :func:`mmnorm.statistics.learned.norm_weights`; ``spread``, that of
            :func:`mmnorm.statistics.learned.measure_spread` as lists, or None.
        out (str | Path): The folder to write to; made if it is not there.

    Returns:
        Path: Of the page, which needs no other file and no network.
    """
    snapshots = content['snapshots']
    last = snapshots[-1]
    context = dict(
        content,
        last=last,
        mixtures={kind: draw_mixture(snapshots, kind) for kind in MIXTURES if last[kind]},
        harden=f'{command("weights")} harden',
        findings=findings(last),
        facts=made(content),
    )
    if last['rbn']:
        context |= dict(rbn=draw_rbn(last['rbn']))
        if len(snapshots) > 1:
            context |= dict(rbn_dynamics=draw_rbn_dynamics(snapshots))
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


def findings(tables):
    """Return what the tables of a snapshot come to, a sentence (str) each."""
    found = []
    for kind, norm in MIXTURES.items():
        if tables[kind]:
            found.append(f'{norm}: {_preferred(tables, kind)}')
    if tables['rbn']:
        average, sizes = tables['rbn_by_part']['all'], []
        for name, column in (('w_m', 'abs_center_weight'), ('w_v', 'abs_scale_weight')):
            if average[column] is not None:
                groups = {part: of[column] for part, of in tables['rbn_by_part'].items() if part != 'all'}
                most = max((part for part in groups if groups[part] is not None), key=groups.get)
                sizes.append(f'{name} is {average[column]:.3f} (largest in {most}, {groups[most]:.3f})')
        if sizes:
            found.append(f'RBN: the average size of {", that of ".join(sizes)}; before training it is 0.')
    return found


def _preferred(tables, kind):
    average, members = tables[f'{kind}_by_part']['all'], tables['members'][kind]
    shares = {
        moment: ', '.join(f'{100 * share:.0f} % {name}' for share, name in zip(average[moment], members))
        for moment in MOMENTS
    }
    ratios = [  # of what the layer has
        [share for share, name in zip(row[moment], members) if name in row['members']]
        for row in tables[kind]
        for moment in MOMENTS
    ]
    moved = max(max(of) - min(of) for of in ratios)
    if moved < UNTRAINED:
        return (
            f'within each layer the ratios differ by {100 * moved:.1f} % at most, nearly as before training. '
            'They say nothing yet about what the layers prefer'
            + (', and hardening would pick by chance.' if kind == 'sn' else '.')
        )
    return (
        f'on average the layers take the mean from {shares["mean"]}, the variance from {shares["var"]}. '
        f'In {100 * tables[f"{kind}_differing"]:.0f} % of them mean and variance prefer different normalizers.'
    )


def finite(tree):
    """Return a tree of plain values with None for numbers that JSON does not have, infinite ones and NaN."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def draw_mixture(snapshots, kind):
    """Return what the page shows of the layers of a norm that mixes, a key of MIXTURES (dict)."""
    last = snapshots[-1]
    members, rows = last['members'][kind], [snapshot[kind] for snapshot in snapshots]
    return dict(
        norm=MIXTURES[kind],
        members=members,
        changes=[None, *itertools.starmap(count_changes, itertools.pairwise(rows))],
        ratios=draw_ratios(rows[-1], members),
        by_part=draw_averages(last[f'{kind}_by_part'], members),
        by_field=draw_averages(last[f'{kind}_by_field'], members),
        hard=draw_hard_ratios(snapshots, kind, members),
        dynamics=draw_dynamics(snapshots, kind, members) if len(snapshots) > 1 else None,
    )


def count_changes(earlier, later):
    """Return how many layers pick another normalizer than in earlier rows, for the mean and for the variance."""
    picked = {row['name']: row for row in earlier}
    return {
        moment: sum(row[f'{moment}_pick'] != picked[row['name']][f'{moment}_pick'] for row in later)
        for moment in MOMENTS
    }


def draw_ratios(rows, members):
    """Return the Drawing of the ratios of what layers mix and their divergence (sn, Fig. 5 and 7c)."""
    with matplotlib.rc_context(STYLE):
        divergences = [row['kl'] for row in rows]
        diverge = any(divergence and math.isfinite(divergence) for divergence in divergences)
        heights = (2.5, 2.5, 2) if diverge else (2.5, 2.5)  # hardened layers have no finite one
        figure = Figure(figsize=(WIDTH, sum(heights)), layout='constrained')
        panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        places = range(len(rows))
        for (moment, title), axes in zip(MOMENTS.items(), panels):
            ratios = np.array([row[moment] for row in rows])
            for index, name in enumerate(members):
                axes.bar(places, ratios[:, index], 0.86, ratios[:, :index].sum(axis=1), color=MEMBER_COLORS[name])
            axes.set(ylabel=f'{title}: share', ylim=(0, 1))
        if diverge:
            panels[2].bar(places, divergences, 0.86, color=SOFT)
            panels[2].set(ylabel='Divergence (nats)')
        name_layers(panels, rows)
        return Drawing([('Ratios by layer', as_svg(figure))], 1, member_keys(members))


def draw_averages(averages, members):
    """Return the Drawing of ratios averaged over groups of layers (sn, Fig. 1, 4, 10 and 11)."""
    labels, panels = [f'{name} ({group["layers"]})' for name, group in averages.items()], []
    with matplotlib.rc_context(STYLE):
        for moment, title in MOMENTS.items():
            figure = Figure(figsize=(HALF, 0.7 + 0.3 * len(labels)), layout='constrained')
            axes = figure.subplots()
            ratios = np.array([group[moment] for group in averages.values()])
            for index, name in enumerate(members):
                left = ratios[:, :index].sum(axis=1)
                bars = axes.barh(range(len(labels)), ratios[:, index], 0.78, left, color=MEMBER_COLORS[name])
                texts = [f'{100 * ratio:.0f}' if ratio > 0.04 else '' for ratio in ratios[:, index]]
                axes.bar_label(bars, texts, label_type='center', fontsize=9, **ON_COLOR)
            axes.set(title=title, xlim=(0, 1))
            axes.set_yticks(range(len(labels)), labels)
            axes.xaxis.set_major_formatter(lambda share, _: f'{100 * share:.0f} %')
            axes.grid(visible=False)
            axes.invert_yaxis()
            panels.append((title, as_svg(figure)))
        return Drawing(panels, 2, member_keys(members))


def draw_hard_ratios(snapshots, kind, members):
    """Return the Drawing of what each layer prefers, in each snapshot (sn, Fig. 8)."""
    rows = snapshots[-1][kind]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.4 + 0.44 * len(snapshots)), layout='constrained')
        panels = figure.subplots(2, 1, sharex=True)
        for axes, (moment, title) in zip(panels, MOMENTS.items()):
            for line, snapshot in enumerate(snapshots):
                for place, row in enumerate(snapshot[kind]):
                    picks = row[f'{moment}_pick']
                    axes.bar(
                        [place] * len(picks),
                        0.86 / len(picks),
                        0.92,
                        [line - 0.43 + 0.86 * group / len(picks) for group in range(len(picks))],
                        color=[MEMBER_COLORS[pick] for pick in picks],
                    )
            axes.set_yticks(range(len(snapshots)), [snapshot['name'] for snapshot in snapshots])
            axes.set(ylim=(len(snapshots) - 0.5, -0.5), ylabel=title)
            axes.grid(visible=False)
        name_layers(panels, rows)
        return Drawing([('What each layer prefers', as_svg(figure))], 1, member_keys(members))


def draw_dynamics(snapshots, kind, members):
    """Return the Drawing of ratios over the snapshots, a panel for each part (sn, Fig. 7, 13 and 14)."""
    curves = {
        f'{name}, {title.lower()}': (
            dict(color=MEMBER_COLORS[name], linestyle=style, marker=marker, markersize=3.5),
            lambda group, m=moment, i=index: group[m][i],
        )
        for (moment, title), style, marker in zip(MOMENTS.items(), ('-', '--'), 'os')
        for index, name in enumerate(members)
    }
    return _draw_over_snapshots(snapshots, f'{kind}_by_part', curves, 'share')


def draw_rbn_dynamics(snapshots):
    """Return the Drawing of how large RBN's weights are over the snapshots, a panel for each part."""
    curves = {
        name: (dict(color=COLORS[index], marker=MARKERS[index], markersize=3.5), lambda group, c=column: group[c])
        for index, (name, column) in enumerate({'|w_m|': 'abs_center_weight', '|w_v|': 'abs_scale_weight'}.items())
    }
    return _draw_over_snapshots(snapshots, 'rbn_by_part', curves, 'mean size')


def _draw_over_snapshots(snapshots, table, curves, unit):
    """Draw a panel for each group of a table of averages; a curve is its style and what takes it from the averages."""
    names, groups = [snapshot['name'] for snapshot in snapshots], list(snapshots[-1][table])
    values = {
        group: [[take(snapshot[table][group]) for snapshot in snapshots] for _, take in curves.values()]
        for group in groups
    }
    highest = max((value for of in values.values() for curve in of for value in curve if value is not None), default=1)
    panels = []
    with matplotlib.rc_context(STYLE):
        for group in groups:
            figure = Figure(figsize=PANEL, layout='constrained')
            axes = figure.subplots()
            for (style, _), curve in zip(curves.values(), values[group]):
                axes.plot(range(len(names)), [math.nan if value is None else value for value in curve], **style)
            axes.set(title=one_line(group, LONGEST_NAME), ylabel=unit, ylim=(0, 1.05 * highest or 1))
            axes.set_xticks(range(len(names)), names, rotation=30, ha='right', fontsize=8)
            panels.append((group, as_svg(figure)))
        return Drawing(panels, 3, samples({name: style for name, (style, _) in curves.items()}))


def draw_rbn(rows):
    """Return the Drawing of RBN's weights by layer, averaged over channels (rbn, Fig. 3 and 4)."""
    styles = [dict(color=COLORS[index], marker=MARKERS[index], markersize=3.5, linewidth=1) for index in range(2)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 7), layout='constrained')
        panels = figure.subplots(len(RBN_PANELS), 1, sharex=True)
        for axes, (title, columns) in zip(panels, RBN_PANELS.items()):
            for column, style in zip(columns, styles):
                values = [math.nan if row[column] is None else row[column] for row in rows]
                axes.plot(range(len(rows)), values, **style)
            axes.set(ylabel=title)
        name_layers(panels, rows)
        keys = dict(zip(('average', 'average of sizes, |w|'), styles))
        return Drawing([('RBN weights by layer', as_svg(figure))], 1, samples(keys))


def draw_spread(spread, rows):
    """Return the Drawing of how far channel means spread in each layer: median and range of its channels."""
    rows = [row for row in rows if row['name'] in spread]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout='constrained')
        axes = figure.subplots()
        for stage, style in SPREAD_STYLES.values():
            low, median, high = np.transpose([np.percentile(spread[row['name']][stage], (10, 50, 90)) for row in rows])
            axes.fill_between(range(len(rows)), low, high, alpha=0.18, linewidth=0, color=style['color'])
            axes.plot(range(len(rows)), median, **style)
        axes.set(ylabel='Standard deviation', ylim=(0, None))
        name_layers([axes], rows)
        return Drawing([('Spread by layer', as_svg(figure))], 1, spread_keys())


def draw_channels(spread):
    """Return the Drawing of the spread of every channel's mean in some layers (rbn, Fig. 5)."""
    layers, panels = list(spread), []
    places = np.linspace(0, len(layers) - 1, min(len(layers), MAX_CHANNEL_PANELS))
    with matplotlib.rc_context(STYLE):
        for name in [layers[round(place)] for place in places]:
            figure = Figure(figsize=PANEL, layout='constrained')
            axes = figure.subplots()
            order = np.argsort(spread[name]['before'])
            for stage, style in SPREAD_STYLES.values():
                axes.plot(np.array(spread[name][stage])[order], **style | dict(markersize=2.2, linewidth=0.9))
            axes.set_title(one_line(name, LONGEST_NAME), fontsize=9)
            axes.set(xlabel='Channel, sorted', ylabel='Standard deviation', ylim=(0, None))
            panels.append((name, as_svg(figure)))
        return Drawing(panels, 3, spread_keys())


def member_keys(members):
    """Return the keys of what layers mix."""
    return samples({name: area_style(MEMBER_COLORS[name]) for name in members})


def spread_keys():
    """Return the keys of what is drawn before and after the scaling calibration."""
    return samples({name: style for name, (_, style) in SPREAD_STYLES.items()})


def name_layers(panels, rows):
    """Name the layers below the lowest of some panels, and above them the parts that they are in."""
    width = len(rows)
    for axes in panels:
        axes.set_xlim(-0.6, width - 0.4)
        axes.grid(visible=False, axis='x')
    panels[-1].tick_params(axis='x', length=0)
    labels = [short_name(row['name'], row['part']) for row in rows] if width <= MAX_LABELS else []
    panels[-1].set_xticks(range(len(labels)), labels, rotation=90, fontsize=min(8, max(5.2, 560 / width)))
    mark_parts(panels, [row['part'] for row in rows])


def short_name(name, part):
    """Return a layer's name without what its part says."""
    rest = name.split('.')[part.count('.') + 1 :]
    return '.'.join(rest) or name.rpartition('.')[2]
