"""The page of a race: what each norm reached at each batch size, and what it cost."""

import math
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from mmnorm.files import as_json, write_together

from .page import render
from .plots import MARKERS, PANEL, STYLE, Drawing, as_svg, line_style, samples, styles_of
from .runs import load_run
from .tables import HEADLINES, format_deviation, format_metric, made, to_csv
from .texts import one_line

FINISHED, FAILED, WAITING = 'finished', 'failed', 'not trained yet'
CLEAR = 2  # standard errors of a difference, from which on two norms are told apart
_NOT_METRICS = ('norm', 'batch_size', 'seed', 'name', 'failure', 'state', 'seconds', 'memory', 'iterations')
LEARNED = 1.0  # percent that the best norm reaches; below it none has learned enough to be compared


def write_race(about, starts, out):
    """Write ``race.html``, ``race.csv`` and ``race.json``, all or none.

    Args:
        about (dict): How the race was made: ``config``, ``command``, ``date``, ``device``, ``versions`` (dict), and its
            settings.
        starts (list[dict]): ``norm``, ``batch_size``, ``seed``, ``name`` of its work dir in ``out``, and ``failure``,
            why the newest attempt ended early (str; '' if it did not).
        out (str | Path): The folder of the race.

    Returns:
        tuple[Path, list[str]]: The page, which needs no other file and no network; and what the race comes to.
    """
    out = Path(out)
    rows = pd.DataFrame([dict(start, **read_start(out / start['name'], start['failure'])) for start in starts])
    metrics = judged_by(rows)
    sentences = findings(rows, metrics[0]) if metrics else []
    context = dict(
        about=about,
        rows=rows,
        metrics=metrics,
        titles=HEADLINES,
        sentences=sentences,
        tables={metric: table_of(rows, metric) for metric in metrics},
        costs=costs_of(rows),
        sizes=list(dict.fromkeys(rows['batch_size'])),
        seeds=list(dict.fromkeys(rows['seed'])),
        states=rows['state'].value_counts().to_dict(),
        plot_of_race=draw_race(rows, metrics) if metrics else None,
        facts=made(about),
    )
    known = rows.astype(object).where(rows.notna(), None)
    page = out / 'race.html'
    contents = {
        page: render('race.html.j2', context),
        page.with_suffix('.csv'): to_csv(rows.set_index('name')),
        page.with_suffix('.json'): as_json(dict(about, starts=known.to_dict('records'))),
    }
    write_together(contents)
    return page, sentences


def read_start(work_dir, failure):
    """What a training reached, and what it cost.

    Args:
        work_dir (Path): Its folder, which may not be there.
        failure (str): Why its newest attempt ended early; '' if it did not.

    Returns:
        dict: ``state``; of one that is finished also its metrics in percent, ``seconds`` for an iteration,
        ``memory`` in MiB and ``iterations``.
    """
    try:
        run = load_run(work_dir)
    except FileNotFoundError:
        run = None
    if run is None or not run.info.get('finished') or run.val.empty:
        return dict(state=FAILED if failure else WAITING)
    seconds = run.iteration_times.median()
    if math.isnan(seconds):
        seconds = run.info['train_seconds'] / run.info['iterations']
    return dict(
        run.val.iloc[-1].to_dict(),
        state=FINISHED,
        seconds=seconds,
        memory=run.info['peak_memory_mb'],
        iterations=run.info['iterations'],
    )


def judged_by(rows):
    """Names of the metrics that the norms are compared by: those that networks are judged by, or else the first."""
    others = [name for name in rows if name not in _NOT_METRICS]
    return [name for name in HEADLINES if name in rows] or others[:1]


def over_seeds(rows, column):
    """Mean, deviation over seeds and number of a column (DataFrame), by norm and batch size in their order."""
    groups = rows[rows['state'] == FINISHED].groupby(['norm', 'batch_size'], sort=False)[column]
    return groups.agg(['mean', 'std', 'count'])


def table_of(rows, metric):
    """A metric as text (DataFrame): norms in rows, batch sizes in columns; '*' ends the highest of a column."""
    values = over_seeds(rows, metric)
    norms, sizes = (list(dict.fromkeys(rows[key])) for key in ('norm', 'batch_size'))
    table = pd.DataFrame('', norms, sizes)
    for size in sizes:
        best = max((values['mean'].get((norm, size), -math.inf) for norm in norms), default=None)
        for norm in norms:
            if (norm, size) in values.index:
                found = values.loc[(norm, size)]
                table.at[norm, size] = _text(found, metric) + ('*' if found['mean'] == best else '')
            else:
                states = rows.loc[(rows['norm'] == norm) & (rows['batch_size'] == size), 'state']
                table.at[norm, size] = FAILED if FAILED in set(states) else '\u2013'
    return table


def costs_of(rows):
    """What a training step costs (list of dict): seconds, their ratio over the first norm's, and peak memory."""
    if 'seconds' not in rows:
        return []
    means = rows[rows['state'] == FINISHED].groupby(['norm', 'batch_size'], sort=False)[['seconds', 'memory']].mean()
    first = rows['norm'].iloc[0]
    return [
        dict(
            norm=norm,
            batch_size=size,
            milliseconds=1000 * seconds,
            ratio=seconds / means['seconds'].get((first, size), math.nan),
            memory=memory,
        )
        for (norm, size), (seconds, memory) in means.iterrows()
    ]


def findings(rows, metric):
    """What a race comes to by a metric, of which more is better: a sentence (str) for each batch size.

    Two norms are told apart where the means over seeds differ by more than twice the standard error of the difference.
    """
    values, sentences = over_seeds(rows, metric), []
    for size in dict.fromkeys(rows['batch_size']):
        column = values[values.index.get_level_values('batch_size') == size].droplevel('batch_size')
        if len(column) < 2:
            continue
        ranked = column.sort_values('mean', ascending=False)
        (name, best), (second_name, second) = list(ranked.iterrows())[:2]
        if metric in HEADLINES and best['mean'] < LEARNED:
            sentences.append(
                f'{size} images a step: no norm reached {LEARNED:g} % {HEADLINES[metric]}, so there is nothing to '
                'compare; train a larger share of the schedule.'
            )
            continue
        sentence = (
            f'{size} images a step: {name} has the highest {HEADLINES.get(metric, metric)}, {_text(best, metric)}'
        )
        alike = [other_name for other_name, other in ranked.iloc[1:].iterrows() if not _told_apart(best, other)]
        if (ranked['count'] < 2).any():
            sentence += (
                f', before {second_name} with {_text(second, metric)}. What another seed would change is not known.'
            )
        elif alike:
            sentence += f'. These seeds do not tell it apart from {", ".join(alike)}.'
        else:
            sentence += ', more than these seeds leave open.'
        sentences.append(sentence)
    return sentences


def _told_apart(one, other):
    error = math.hypot(one['std'] / math.sqrt(one['count']), other['std'] / math.sqrt(other['count']))
    return one['mean'] - other['mean'] > CLEAR * error


def _text(values, metric):
    """Mean and deviation of a row of :func:`over_seeds`; the value of a single training."""
    if values['count'] > 1:
        return format_deviation(values['mean'], values['std'], metric)
    return format_metric(values['mean'], metric)


def draw_race(rows, metrics):
    """Draw metrics and the time of an image against the batch size, as a Drawing: a line for each norm, a dot for each
    training."""
    norms = list(dict.fromkeys(rows['norm']))
    styles = styles_of(norms, line_style) or {norms[0]: line_style(0, 1)}
    styles = {norm: dict(style, marker=MARKERS[i % len(MARKERS)]) for i, (norm, style) in enumerate(styles.items())}
    rows = rows.assign(image=1000 * rows['seconds'] / rows['batch_size'])
    panels = [(HEADLINES.get(metric, metric), '%' if metric in HEADLINES else '', metric) for metric in metrics]
    panels.append(('Time of an image in training', 'ms', 'image'))
    with matplotlib.rc_context(STYLE):
        drawn = [(title, as_svg(_plot_by_size(rows, column, title, unit, styles))) for title, unit, column in panels]
        return Drawing(drawn, 3, samples(styles))


def _plot_by_size(rows, column, title, unit, styles):
    figure = Figure(figsize=PANEL, layout='constrained')
    axes = figure.subplots()
    values = over_seeds(rows, column)
    for norm, style in styles.items():
        of_norm = rows[(rows['norm'] == norm) & (rows['state'] == FINISHED)]
        dots = dict(linestyle='none', marker='o', markersize=3, alpha=0.4, color=style['color'])
        axes.plot(of_norm['batch_size'], of_norm[column], **dots)
        if norm in values.index:
            means = values.loc[norm].sort_index()
            axes.plot(means.index, means['mean'], **style)
    sizes = sorted(set(rows['batch_size']))
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:g}')
    axes.set(title=one_line(title), ylabel=unit, xlabel='images of a process in a step')
    if column == 'image':
        axes.set_ylim(0, 1.1 * rows['image'].max())
    return figure
