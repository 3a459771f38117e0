"""Plots of the report, drawn with matplotlib and returned as SVG."""

import io
import itertools
import math
from dataclasses import dataclass, field

import matplotlib
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator

from .texts import one_line, visible

# Okabe and Ito's palette, which color-blind readers can tell apart; its orange darkened, and without its yellow and sky
# blue, which are faint on white.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#1C2126', '#A86C00')
SOFT, FAINT = '#4a5058', '#8a9099'  # text of axes, and lines that are no data
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
    'axes.edgecolor': FAINT,
    'axes.labelcolor': SOFT,
    'axes.grid': True,
    'axes.axisbelow': True,
    'axes.formatter.limits': (-5, 6),
    'grid.color': '#e6e8eb',
    'xtick.color': SOFT,
    'ytick.color': SOFT,
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
PANEL = (3.6, 2.5)  # inches, of plots that stand in three columns on a wide screen
HALF = 4.4  # inches, of those in two
WIDTH = 10.8  # inches, of those as wide as the page
# Of numbers in colored areas: they are read on any color, on white and in the dark
ON_COLOR = dict(color='black', path_effects=(withStroke(linewidth=3, foreground='white'),))
LONGEST_NAME = 40  # characters of a run's or class's name in a plot
MOST_NUMBERS = 31  # classes of a confusion matrix, with 'missed': more have no numbers in the plot
# From transparent to the first of COLORS
SHARES = LinearSegmentedColormap.from_list('shares', ['#0072B200', '#0072B2'])
FEW_POINTS = 30  # up to which they are marked, and not smoothed


@dataclass
class Drawing:
    """Plots that a page shows as one figure.

    Attributes:
        panels: (title, SVG as bytes) of each plot.
        columns: In how many they stand where there is room: 3 for plots as wide as ``PANEL``, 2 as ``HALF``, 1 as
            ``WIDTH``.
        keys: What a line or color stands for, to a sample of it as SVG (bytes).
    """

    panels: list
    columns: int
    keys: dict = field(default_factory=dict)


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
        linewidth=matplotlib.rcParams['lines.linewidth'] * (1 + 0.3 * min(number - 1 - index, 3)),
    )


def marker_style(index, number):
    """Return how the dots of one of so many runs are drawn, those above smaller than those below."""
    return dict(
        color=COLORS[index % len(COLORS)],
        marker=MARKERS[index % len(MARKERS)],
        markersize=matplotlib.rcParams['lines.markersize'] * (1 + 0.3 * min(number - 1 - index, 3)),
        markeredgecolor='white',
        linestyle='none',
    )


def area_style(color):
    """Return how the sample of a colored area is drawn."""
    return dict(color=color, linewidth=9, solid_capstyle='butt')


def styles_of(names, style):
    """Return the style of each name (dict), if there are several: one needs no key."""
    return {name: style(index, len(names)) for index, name in enumerate(names)} if len(names) > 1 else {}


def draw_curves(panels, names):
    """Return the Drawing of the curves of panels.

    Args:
        panels (list[Panel]): At least one; their curves are in the order of ``names``.
        names (list[str]): Of the runs.
    """
    with matplotlib.rc_context(STYLE):
        plots = [(panel.title, as_svg(plot_curves(panel))) for panel in panels]
        return Drawing(plots, 3, samples(styles_of(names, line_style)))


def plot_curves(panel, names=()):
    """Plot the curves of all runs of a Panel, with a legend if names are given; return the Figure."""
    figure = Figure(figsize=PANEL, layout='constrained')
    axes = figure.subplots()
    for index, curve in enumerate(panel.curves):
        if curve is None:
            continue
        style = line_style(index, len(panel.curves))
        if len(curve) <= FEW_POINTS:
            style |= dict(marker=MARKERS[index % len(MARKERS)], markersize=1.9 * style['linewidth'])
        elif panel.smooth:
            axes.plot(curve.index, curve, color=style['color'], alpha=0.3, linewidth=0.9)
            average = curve.rolling(max(3, len(curve) // 20), center=True, min_periods=1).mean()
            curve = average.where(curve.notna())  # a gap stays a gap
        axes.plot(curve.index, curve, **style)
    axes.set(title=one_line(panel.title, LONGEST_NAME), ylabel=panel.unit, xlabel=panel.axis)
    axes.set_xlim(left=0)
    if panel.axis == 'Recall':
        axes.set(xlim=(0, 1), ylim=(0, None))
    else:
        axes.locator_params(axis='x', integer=True)
    add_legend(figure, styles_of(names, line_style))
    return figure


def draw_dots(tables):
    """Return the Drawing of AP of classes or sizes.

    Args:
        tables (dict[str, DataFrame]): By title, as :func:`plot_dots` takes them; all in the first one's order.
    """
    first = next(iter(tables.values()))
    with matplotlib.rc_context(STYLE):
        plots = [(title, as_svg(plot_dots(title, table.reindex(first.index)))) for title, table in tables.items()]
        return Drawing(plots, 2, samples(styles_of(list(first), marker_style)))


def plot_dots(title, table, width=HALF, legend=False):
    """Plot AP of classes or sizes as dots.

    Args:
        title (str): Of the plot.
        table (DataFrame): AP in percent of classes or sizes (rows, the first on top) and runs (columns).
        width (float): Inches.
        legend (bool): Whether to name the runs.

    Returns:
        Figure
    """
    figure = Figure(figsize=(width, max(1.7, 0.9 + 0.22 * len(table))), layout='constrained')
    axes = figure.subplots()
    for index, run in enumerate(table):
        axes.plot(table[run], range(len(table)), **marker_style(index, len(table.columns)))
    highest = table.max(axis=None)
    axes.set(title=title, xlabel='AP (%)', xlim=(0, 1.05 * highest if highest > 0 else None))
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.set_yticks(range(len(table)), table.index)
    add_legend(figure, styles_of(list(table), marker_style) if legend else {})
    return figure


def draw_confusion(matrices):
    """Return the Drawing of confusion matrices: of counts (DataFrame) as :func:`plot_confusion` takes them, by run."""
    with matplotlib.rc_context(STYLE):
        return Drawing([(run, as_svg(plot_confusion(run, matrix))) for run, matrix in matrices.items()], 2)


def plot_confusion(run, matrix, width=HALF):
    """Plot a confusion matrix, each row colored by its shares.

    Args:
        run (str): The run's name.
        matrix (DataFrame): Counts of objects (rows) and predictions (columns).
        width (float): With labels, in inches.

    Returns:
        Figure
    """
    number = len(matrix)
    size = min(matplotlib.rcParams['font.size'] - 1, 46 * width / number)
    figure = Figure(figsize=(width, 1.2 + max(2.4, min(width, 0.28 * number))), layout='constrained')
    axes = figure.subplots()
    shares = matrix.div(matrix.sum(axis=1).clip(lower=1), axis=0)
    axes.pcolormesh(shares, cmap=SHARES, vmin=0, vmax=1, edgecolors=f'{FAINT}30', linewidth=0.5)
    axes.set(title=one_line(run, LONGEST_NAME), xlabel='Predicted', ylabel='Annotated')
    axes.invert_yaxis()
    axes.grid(visible=False)
    places = [index + 0.5 for index in range(number)]
    axes.set_xticks(places, matrix.columns, rotation=90, fontsize=size)
    axes.set_yticks(places, matrix.index, fontsize=size)
    axes.tick_params(length=0)
    for row, column in zip(*matrix.to_numpy().nonzero()) if number <= MOST_NUMBERS else ():
        place = (column + 0.5, row + 0.5)
        axes.annotate(matrix.iat[row, column], place, ha='center', va='center', fontsize=size, **ON_COLOR)
    return figure


def mark_parts(panels, parts, first=0):
    """Draw lines between the parts of a network (stages, neck, heads), and name them above the first panel.

    Args:
        panels (sequence[Axes]): One above the other; layers stand at ``first``, ``first + 1``, ...
        parts (list[str]): Of each layer, in the order of the network.
        first (int): Place of the first layer.
    """
    per_layer = panels[0].figure.get_figwidth() / len(parts)  # inches
    start, taken = first, [-math.inf] * 3  # up to where the lines of names are, in inches
    for part, members in itertools.groupby(parts):
        end = start + len(list(members))
        text = one_line(part.rpartition('.')[2], LONGEST_NAME)
        middle, reach = (start + end - 1) / 2, 0.042 * len(text)  # half of the text's length
        line = next((line for line, until in enumerate(taken) if middle * per_layer - reach >= until), None)
        if line is not None:
            taken[line] = middle * per_layer + reach
            panels[0].annotate(
                text,
                (middle, 1),
                (0, 3 + 10 * line),
                fontsize=8,
                ha='center',
                color=SOFT,
                parse_math=False,
                xycoords=('data', 'axes fraction'),
                textcoords='offset points',
            )
        for axes in panels if end < first + len(parts) else ():
            axes.axvline(end - 0.5, color=FAINT, linewidth=1, zorder=3)
        start = end
    lines = sum(until > -math.inf for until in taken)
    panels[0].set_title(panels[0].get_title(loc='left'), pad=6 + 10 * lines)


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


def add_legend(figure, styles):
    """Put a legend above a figure's panels, which makes it higher: for figures that stand alone.

    Args:
        figure (Figure): Of a file; pages have their keys beside the plots.
        styles (dict[str, dict]): Name to the style of its line; none, no legend.
    """
    if not styles:
        return
    names = [one_line(name, LONGEST_NAME) for name in styles]
    size = matplotlib.rcParams['font.size'] / 72  # inches
    columns = max(1, min(len(names), int(figure.get_figwidth() / size / (0.62 * max(map(len, names)) + 6))))
    figure.set_figheight(figure.get_figheight() + 1.5 * size * (math.ceil(len(names) / columns) - 1))
    handles = [Line2D([], [], **style) for style in styles.values()]
    legend = figure.legend(handles, range(len(names)), loc='outside upper left', ncols=columns, handlelength=2.4)
    for text, name in zip(legend.get_texts(), names):  # given at once, a name that begins with _ would be left out
        text.set_text(name)


def samples(styles):
    """Return what the keys of a Drawing show: for each name a sample of its style (dict), as SVG (bytes)."""
    keys = {}
    for name, style in styles.items():
        figure = Figure(figsize=(0.45, 0.2))
        figure.add_artist(Line2D([0.04, 0.5, 0.96], [0.5] * 3, markevery=[1], **style))
        keys[name] = as_svg(figure)
    return keys


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
