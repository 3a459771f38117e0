"""The page of a diagnosis: what a network's BN statistics do, by layer and channel, and what mends them."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mmnorm.files import as_json, write_together

from .page import render
from .plots import COLORS, STYLE, as_svg

NAMES = {
    'as it is': 'As it is',
    'recollect': 'Recollected statistics',
    'evalnorm_offline': 'EvalNorm, estimated',
    'evalnorm_rule': 'EvalNorm, 1/B²',
}
CURVE_COLORS = {
    'training, by batch statistics': COLORS[0],
    'evaluation of training images': COLORS[1],
    'evaluation of training images, EvalNorm': COLORS[2],
    'evaluation of test images': COLORS[3],
}
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
    """Draw the shifts of all layers by depth, as SVG (bytes).

    Args:
        layers (DataFrame): One row per norm layer, in the order of the network.
    """
    depth = np.arange(1, len(layers) + 1)
    panels = [
        ('Mean: relative shift', 'relative_mu', 'domain_mu', 'deviations (RMS)'),
        ('Deviation: relative shift', 'relative_sigma', 'domain_sigma', 'deviations (RMS)'),
        ('Mean: ESM, absolute', 'esm_mu', None, 'ESM of μ (L2 norm)'),
        ('Deviation: ESM, absolute', 'esm_sigma', None, 'ESM of σ (L2 norm)'),
    ]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.8, 6.2), layout='constrained')
        grid = figure.subplots(2, 2, sharex=True)
        for axes, (title, own, domain, unit) in zip(grid.flat, panels):
            axes.plot(
                depth, layers[own], 'o-', markersize=3, color=COLORS[0], label='running statistics to test images'
            )
            if domain:
                axes.plot(
                    depth,
                    layers[domain].astype(float),
                    's--',
                    markersize=2.5,
                    linewidth=1,
                    color=COLORS[1],
                    label='training images to test images',
                )
            axes.set(title=title, ylabel=unit, ylim=(0, None))
            mark_parts(axes, list(layers['part']))
        for axes in grid[1]:
            axes.set_xlabel('Norm layer, by depth')
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc='outside upper left', ncols=2)
        return as_svg(figure)


def mark_parts(axes, parts):
    """Write the parts of a network (stages, neck, heads) above a plot by depth, with lines between them.

    Args:
        axes (Axes): With the layers at 1, 2, 3 ...
        parts (list[str]): Of each layer, in the order of the network.
    """
    starts = [i for i, part in enumerate(parts) if i == 0 or part != parts[i - 1]]
    for start, end in zip(starts, [*starts[1:], len(parts)]):
        if start:
            axes.axvline(start + 0.5, color='#c3c8ce', linewidth=0.8, zorder=0)
        if end - start > len(parts) / 20:
            axes.text(
                (start + end + 1) / 2,
                0.985,
                parts[start].rpartition('.')[2],
                va='top',
                ha='center',
                fontsize=8,
                color='#5b636d',
                transform=axes.get_xaxis_transform(),
            )


def draw_channels(result):
    """Draw the histograms of single channels, as SVG (bytes); evalnorm, Figure 1."""
    edges, panels = np.array(result['edges']), result['histograms']
    rows = -(-len(panels) // 3)
    normal = np.exp(-(edges**2) / 2) / np.sqrt(2 * np.pi)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.8, 2.7 * rows + 0.4), layout='constrained')
        grid = figure.subplots(rows, 3, squeeze=False)
        handles = {}
        for axes, panel in zip(grid.flat, panels):
            (handles['standard normal'],) = axes.plot(edges, normal, color='#b5bac1', linewidth=1, linestyle=':')
            for title, density in panel['curves'].items():
                (handles[title],) = axes.plot(
                    (edges[:-1] + edges[1:]) / 2, density, color=CURVE_COLORS[title], linewidth=1.4
                )
            axes.set(title=f'{panel["layer"]}\nchannel {panel["channel"]}', yticks=[])
            axes.title.set_fontsize(9)
        for axes in list(grid.flat)[len(panels) :]:
            axes.axis('off')
        for axes in grid[-1]:
            axes.set_xlabel('normalized activation')
        figure.legend(handles.values(), handles, loc='outside upper left', ncols=3)
        return as_svg(figure)


def draw_evalnorm(values, parts):
    """Draw alpha and beta of all layers by depth, as SVG (bytes); evalnorm, Figure 3.

    Args:
        values (dict[str, dict]): Layer name to ``alpha``, ``beta`` and ``batch_size``, in the order of the network.
        parts (Series): Layer name to the part of the network.
    """
    depth = np.arange(1, len(values) + 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.8, 2.8), layout='constrained')
        axes = figure.subplots()
        for index, (key, title) in enumerate((('alpha', 'α, estimated'), ('beta', 'β, estimated'))):
            axes.plot(depth, [v[key] for v in values.values()], 'o-', markersize=3, color=COLORS[index], label=title)
        rule = [np.nan if not v['batch_size'] else v['batch_size'] ** -2 for v in values.values()]
        axes.step(depth, rule, where='mid', color='#8a9099', linewidth=1, linestyle='--', label='the rule, 1/B²')
        axes.set(ylim=(0, None), xlabel='Norm layer, by depth')
        mark_parts(axes, [parts.get(name, '') for name in values])
        figure.legend(loc='outside upper left', ncols=3)
        return as_svg(figure)


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
