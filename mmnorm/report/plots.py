"""Plots of the report, drawn with matplotlib and returned as SVG."""

import io
import math
from dataclasses import dataclass

import matplotlib
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator

from .texts import one_line, visible

# Okabe and Ito's palette, which color-blind readers can tell apart; without its yellow and black.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
LINES = ('-', (0, (4, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)))
MARKERS = 'os^Dv'
STYLE = {
    'font.size': 10,
    'font.family': 'sans-serif',
    'axes.titlesize': 'medium',
    'axes.titleweight': 'bold',
    'axes.titlelocation': 'left',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.edgecolor': '#8a9099',
    'axes.labelcolor': '#4a5058',
    'axes.grid': True,
    'axes.axisbelow': True,
    'axes.formatter.limits': (-5, 6),
    'grid.color': '#e6e8eb',
    'xtick.color': '#4a5058',
    'ytick.color': '#4a5058',
    'lines.linewidth': 1.6,
    'lines.markersize': 5.5,
    'legend.frameon': False,
    'text.parse_math': False,  # class and run names may have dollar signs
    'svg.hashsalt': 'mmnorm',  # the same run gives the same file
}
PAPER = {
    'font.size': 8,
    'axes.linewidth': 0.6,
    'lines.linewidth': 1.0,
    'pdf.fonttype': 42,
}  # one column; text stays text
PANEL = (3.6, 2.5)  # inches
COLUMNS = 3
LONGEST_NAME = 40  # characters of a run's or class's name in a plot
MOST_NUMBERS = 31  # classes of a confusion matrix, with 'missed': more have no numbers in the plot
# From transparent to the first of COLORS
SHARES = LinearSegmentedColormap.from_list('shares', ['#0072B200', '#0072B2'])
FEW_POINTS = 30  # up to which they are marked, and not smoothed


@dataclass
class Panel:
    """One set of axes.

    Attributes:
        title: What is shown.
        unit: Label of the y axis.
        curves: For each run a Series over iterations, or over what ``axis`` says, or None if it has no such values.
        smooth: Whether to draw many points light, with their moving average over a twentieth of them.
        axis: Label of the x axis.
    """

    title: str
    unit: str
    curves: list
    smooth: bool = False
    axis: str = 'Iteration'


def line_style(index, number):
    """Return how the line of one of so many runs is drawn: where lines coincide, those below show beside and between
    those above."""
    return dict(
        color=COLORS[index % len(COLORS)],
        linestyle=LINES[(index + index // len(COLORS)) % len(LINES)],
        linewidth=matplotlib.rcParams['lines.linewidth'] * (1 + 0.4 * min(number - 1 - index, 3)),
    )


def marker_style(index, number):
    """Return how the dots of one of so many runs are drawn, those above smaller than those below."""
    return dict(
        color=COLORS[index % len(COLORS)],
        marker=MARKERS[index % len(MARKERS)],
        markersize=matplotlib.rcParams['lines.markersize'] * (1 + 0.3 * min(number - 1 - index, 3)),
    )


def draw_panel(axes, panel):
    """Draw the curves of all runs onto one set of axes."""
    for index, curve in enumerate(panel.curves):
        if curve is None:
            continue
        style = line_style(index, len(panel.curves))
        if len(curve) <= FEW_POINTS:
            style |= dict(marker=MARKERS[index % len(MARKERS)], markersize=2.2 * style['linewidth'])
        elif panel.smooth:
            axes.plot(curve.index, curve, color=style['color'], alpha=0.3, linewidth=0.9)
            average = curve.rolling(max(3, len(curve) // 20), center=True, min_periods=1).mean()
            curve = average.where(curve.notna())  # a gap stays a gap
        axes.plot(curve.index, curve, **style)
    axes.set(title=one_line(panel.title, LONGEST_NAME), ylabel=panel.unit, xlabel=panel.axis)
    axes.set_xlim(left=0)
    if panel.axis == 'Recall':
        axes.set(xlim=(0, 1), ylim=(0, None))


def draw_curves(panels, names):
    """Return the SVG (bytes) of :func:`plot_curves`."""
    with matplotlib.rc_context(STYLE):
        return as_svg(plot_curves(panels, names))


def plot_curves(panels, names, columns=COLUMNS):
    """Plot a grid of panels.

    Args:
        panels (list[Panel]): At least one; their curves are in the order of ``names``.
        names (list[str]): Of the runs.
        columns (int): Of the grid.

    Returns:
        Figure
    """
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(columns * PANEL[0], rows * PANEL[1]), layout='constrained')
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for panel, axes in zip(panels, grid):
        draw_panel(axes, panel)
    for axes in grid:  # the rest of the last row
        axes.axis('off')
    add_legend(figure, names)
    return figure


def draw_dots(tables):
    """Return the SVG (bytes) of :func:`plot_dots`."""
    with matplotlib.rc_context(STYLE):
        return as_svg(plot_dots(tables))


def plot_dots(tables, width=COLUMNS * PANEL[0]):
    """Plot AP of classes or sizes as dots.

    Args:
        tables (dict[str, DataFrame]): By title, AP in percent of classes or sizes (rows, the first on top) and runs
            (columns).
        width (float): Inches.

    Returns:
        Figure
    """
    first = next(iter(tables.values()))
    rows = first.index[::-1]
    figure = Figure(figsize=(width, max(1.7, 0.9 + 0.22 * len(rows))), layout='constrained')
    grid = figure.subplots(1, len(tables), sharey=True, squeeze=False).flat
    styles = [marker_style(index, len(first.columns)) for index in range(len(first.columns))]
    for axes, (title, table) in zip(grid, tables.items()):
        for run, style in zip(table, styles):
            values = table[run].reindex(rows)
            axes.plot(values, range(len(rows)), linestyle='none', markeredgecolor='white', **style)
        highest = table.max(axis=None)
        axes.set(title=title, xlabel='AP (%)', xlim=(0, 1.05 * highest if highest > 0 else None))
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_yticks(range(len(rows)), rows)
    name_handles(figure, [Line2D([], [], linestyle='none', **style) for style in styles], list(first))
    return figure


def draw_confusion(matrices):
    """Return the SVG (bytes) of :func:`plot_confusion`."""
    with matplotlib.rc_context(STYLE):
        return as_svg(plot_confusion(matrices))


def plot_confusion(matrices, columns=2, side=COLUMNS * PANEL[0] / 2):
    """Plot confusion matrices, each row colored by its shares.

    Args:
        matrices (dict[str, DataFrame]): By run, counts of objects (rows) and predictions (columns).
        columns (int): Of the grid of matrices.
        side (float): Of a matrix with its labels, in inches.

    Returns:
        Figure
    """
    rows = math.ceil(len(matrices) / columns)
    most = max(map(len, matrices.values()))
    size = min(matplotlib.rcParams['font.size'] - 1, 46 * side / most)
    figure = Figure(figsize=(columns * side, rows * (1.2 + max(2.4, min(side, 0.28 * most)))), layout='constrained')
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for (run, matrix), axes in zip(matrices.items(), grid):
        shares = matrix.div(matrix.sum(axis=1).clip(lower=1), axis=0)
        axes.pcolormesh(shares, cmap=SHARES, vmin=0, vmax=1, edgecolors='#8a909930', linewidth=0.5)
        axes.set(title=one_line(run, LONGEST_NAME), xlabel='Predicted', ylabel='Annotated')
        axes.invert_yaxis()
        axes.grid(visible=False)
        places = [index + 0.5 for index in range(len(matrix))]
        axes.set_xticks(places, matrix.columns, rotation=90, fontsize=size)
        axes.set_yticks(places, matrix.index, fontsize=size)
        axes.tick_params(length=0)
        if most > MOST_NUMBERS:
            continue
        for row, column in zip(*matrix.to_numpy().nonzero()):
            color = 'white' if shares.iat[row, column] > 0.5 else '#1c2126'
            place = (column + 0.5, row + 0.5)
            axes.annotate(matrix.iat[row, column], place, ha='center', va='center', fontsize=size, color=color)
    for axes in grid:  # the rest of the last row
        axes.axis('off')
    return figure


def for_paper(plot, *args, **kwargs):
    """Plot for a paper.

    Args:
        plot (callable): Returns a Figure of these arguments.

    Returns:
        dict[str, bytes]: By 'pdf' and 'svg', without a date, so that the same run gives the same file.
    """
    contents = {}
    with matplotlib.rc_context(STYLE | PAPER):
        figure = plot(*args, **kwargs)
        show_texts(figure)
        for suffix, date in (('pdf', 'CreationDate'), ('svg', 'Date')):
            file = io.BytesIO()
            figure.savefig(file, format=suffix, metadata={date: None})
            contents[suffix] = file.getvalue()
    return contents


def add_legend(figure, names):
    """Put the runs' names and lines above all panels."""
    name_handles(figure, [Line2D([], [], **line_style(index, len(names))) for index in range(len(names))], names)


def name_handles(figure, handles, names):
    """Put a legend above all panels, which makes the figure higher; one name needs none."""
    if len(names) < 2:
        return
    names = [one_line(name, LONGEST_NAME) for name in names]
    size = matplotlib.rcParams['font.size'] / 72  # inches
    columns = max(1, min(len(names), int(figure.get_figwidth() / size / (0.62 * max(map(len, names)) + 6))))
    figure.set_figheight(figure.get_figheight() + 1.5 * size * (math.ceil(len(names) / columns) - 1))
    legend = figure.legend(handles, range(len(names)), loc='outside upper left', ncols=columns, handlelength=2.4)
    for text, name in zip(legend.get_texts(), names):  # given at once, a name that begins with _ would be left out
        text.set_text(name)


def as_svg(figure):
    """Return a figure as SVG (bytes), without a date, so that the same run gives the same file."""
    show_texts(figure)
    file = io.BytesIO()
    figure.savefig(file, format='svg', metadata={'Date': None}, transparent=True)
    return file.getvalue()


def show_texts(figure):
    """Make texts from files fit for a plot: control characters are no XML, and what is long leaves no room."""
    for axis in [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]:
        if isinstance(axis.get_major_locator(), FixedLocator):
            labels = axis.get_major_formatter().format_ticks(axis.get_majorticklocs())
            axis.set_ticklabels([one_line(label, LONGEST_NAME) for label in labels])
    for text in figure.findobj(Text):
        text.set_text(visible(text.get_text()))
