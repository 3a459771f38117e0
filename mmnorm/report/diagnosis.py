"""The page of a diagnosis: what a network's BN statistics do, by layer and channel, and what mends them."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mmnorm.files import as_json, write_together

from .page import render
from .plots import (
    COLORS,
    HALF,
    LINES,
    LONGEST_NAME,
    PANEL,
    SOFT,
    STYLE,
    WIDTH,
    Drawing,
    as_svg,
    mark_parts,
    samples,
)
from .tables import made
from .texts import one_line

NAMES = {
    'as it is': 'As it is',
    'recollect': 'Recollected statistics',
    'evalnorm_offline': 'EvalNorm, estimated',
    'evalnorm_rule': 'EvalNorm, 1/B²',
}
CURVES = (
    'training, by batch statistics',
    'evaluation of training images',
    'evaluation of training images, EvalNorm',
    'evaluation of test images',
)
WORST_LAYERS = 10


def write_diagnosis(result, out):
    """Write ``diagnosis.html`` and ``diagnosis.json``, both or none.

    Args:
        result (dict): ``result`` of :class:`mmnorm.engine.Diagnosis`, or what was read from its JSON.
        out (str | Path): The folder to write to; made if it is not there.

    Returns:
        Path: Of the page, which needs no other file and no network.
    """
    layers = pd.DataFrame(result['layers'])
    of_norms = layers[layers['type'] != 'input']
    metrics = pd.DataFrame(result['headline']).T
    context = dict(
        result=result,
        names=NAMES,
        metrics=metrics,
        differences=metrics - metrics.iloc[0],
        intervals=(result.get('confidence') or {}).get('intervals') or {},
        layers=layers,
        worst=of_norms.sort_values('size', ascending=False).head(WORST_LAYERS).to_dict('records'),
        shared=[layer for layer in result['layers'] if layer.get('calls')],
        by_batch=result['trained_by_batch'],
        number_of_layers=sum(result['norms'].values()),
        facts=made(result),
        depth_plot=draw_depth(of_norms),
        channel_plot=draw_channels(result) if result['histograms'] else None,
        evalnorm_plot=None,
    )
    if result['evalnorm']:
        context['evalnorm_plot'] = draw_evalnorm(result['evalnorm'], layers.set_index('name')['part'])
    page = Path(out) / 'diagnosis.html'
    page.parent.mkdir(parents=True, exist_ok=True)
    write_together({page: render('diagnosis.html.j2', context), page.with_suffix('.json'): as_json(result)})
    return page


def draw_depth(layers):
    """Draw the shifts of all layers by depth, as a Drawing.

    Args:
        layers (DataFrame): One row per norm layer, in the order of the network.
    """
    styles = {
        'running statistics to test images': dict(color=COLORS[0], marker='o', markersize=3),
        'training images to test images': dict(
            color=COLORS[1], marker='s', markersize=2.5, linestyle='--', linewidth=1.2
        ),
    }
    panels = []
    with matplotlib.rc_context(STYLE):
        for title, columns, unit in (
            ('Mean: relative shift', ('relative_mu', 'domain_mu'), 'deviations (RMS)'),
            ('Deviation: relative shift', ('relative_sigma', 'domain_sigma'), 'deviations (RMS)'),
            ('Mean: ESM, absolute', ('esm_mu',), 'ESM of μ (L2 norm)'),
            ('Deviation: ESM, absolute', ('esm_sigma',), 'ESM of σ (L2 norm)'),
        ):
            panels.append((title, draw_by_depth(layers[list(columns)], styles.values(), layers['part'], title, unit)))
        return Drawing(panels, 2, samples(styles))


def draw_by_depth(values, styles, parts, title='', unit='', size=(HALF, 3)):
    """Draw columns of values by depth, as SVG (bytes).

    Args:
        values (DataFrame): One row per norm layer, in the order of the network.
        styles (iterable[dict]): Of each column.
        parts (Series): The part of the network that each layer is in.
        title, unit (str): Of the plot and of its y axis.
        size (tuple[float, float]): Inches.
    """
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots()
    depth = np.arange(1, len(values) + 1)
    for column, style in zip(values, styles):
        axes.plot(depth, values[column].astype(float), **style)
    axes.set(title=title, ylabel=unit, ylim=(0, None), xlim=(0.4, len(values) + 0.6), xlabel='Norm layer, by depth')
    mark_parts([axes], list(parts), first=1)
    return as_svg(figure)


def draw_channels(result):
    """Draw the histograms of single channels, as a Drawing; evalnorm, Figure 1."""
    edges, panels = np.array(result['edges']), []
    shown = {title for panel in result['histograms'] for title in panel['curves']}
    styles = {
        title: dict(color=color, linestyle=line, linewidth=1.5)
        for title, color, line in zip(CURVES, COLORS, LINES)
        if title in shown
    }
    normal = dict(color=SOFT, linewidth=0.8)
    with matplotlib.rc_context(STYLE):
        for panel in result['histograms']:
            figure = Figure(figsize=PANEL, layout='constrained')
            axes = figure.subplots()
            axes.plot(edges, np.exp(-(edges**2) / 2) / np.sqrt(2 * np.pi), **normal)
            for title, density in panel['curves'].items():
                axes.plot((edges[:-1] + edges[1:]) / 2, density, **styles[title])
            title = f'{one_line(panel["layer"], LONGEST_NAME)}\nchannel {panel["channel"]}'
            axes.set(yticks=[], ylim=(0, None), ylabel='density', xlabel='normalized activation')
            axes.set_title(title, fontsize=9)
            panels.append((title, as_svg(figure)))
        return Drawing(panels, 3, samples(styles | {'standard normal': normal}))


def draw_evalnorm(values, parts):
    """Draw alpha and beta of all layers by depth, as a Drawing; evalnorm, Figure 3.

    Args:
        values (dict[str, dict]): Layer name to ``alpha``, ``beta`` and ``batch_size``, in the order of the network.
        parts (Series): Layer name to the part of the network.
    """
    table = pd.DataFrame(values).T
    table['rule'] = table.pop('batch_size').astype(float) ** -2
    styles = {
        'α, estimated': dict(color=COLORS[0], marker='o', markersize=3),
        'β, estimated': dict(color=COLORS[1], marker='s', markersize=3, linewidth=1.2),
        'the rule, 1/B²': dict(color=SOFT, linewidth=1, linestyle='--', drawstyle='steps-mid'),
    }
    with matplotlib.rc_context(STYLE):
        svg = draw_by_depth(
            table, styles.values(), parts.reindex(table.index, fill_value=''), unit='α, β', size=(WIDTH, 2.8)
        )
        return Drawing([('α and β by depth', svg)], 1, samples(styles))


def draw_perturbation(curves):
    """Draw metrics against noise magnitude, as SVG (bytes); xbn, Figures 8 and A9.

    Args:
        curves (list[dict]): ``blocks``, ``delta`` and ``metrics``, a dict for each noise seed.
    """
    numbers = list(dict.fromkeys(curve['blocks'] for curve in curves))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(numbers), 3.2), layout='constrained')
        grid = figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
        for axes, blocks in zip(grid, numbers):
            table = pd.DataFrame(
                [
                    dict(found, delta=curve['delta'])
                    for curve in curves
                    if curve['blocks'] == blocks
                    for found in curve['metrics']
                ]
            ).groupby('delta')
            for index, key in enumerate(table.mean()):
                axes.errorbar(
                    table.mean().index,
                    table.mean()[key],
                    table.std()[key].fillna(0),
                    marker='o',
                    markersize=3.5,
                    capsize=2,
                    color=COLORS[index % len(COLORS)],
                    label=key,
                )
            axes.set(title=f'First {blocks} block{"s" * (blocks > 1)}', xlabel='noise magnitude Δ', ylim=(0, None))
        grid[0].set_ylabel('%, mean and deviation over noise seeds')
        figure.legend(*grid[0].get_legend_handles_labels(), loc='outside upper left', ncols=4)
        return as_svg(figure)
