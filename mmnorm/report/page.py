"""The report itself: tables, plots and pictures on a page, and its three files."""

import base64
import re
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from mmnorm.files import write_together

from . import tables
from .coco import evaluate_run
from .detections import confusion, most_confused, precision_panels, size_tables
from .images import OUTCOME_COLORS, compare_images
from .paper import compare_with_papers
from .plots import (
    PANEL,
    Panel,
    draw_confusion,
    draw_curves,
    draw_dots,
    for_paper,
    plot_confusion,
    plot_curves,
    plot_dots,
)
from .runs import COCO_NAMES, SEGMENTATION_METRICS
from .seeds import over_seeds
from .tables import TITLES
from .texts import in_markdown, visible

MAX_OTHER_METRICS = 6  # drawn over training; some evaluators log one for each class


def write_report(runs, out, num_images=12, score_thr=0.5, figures=False):
    """Write ``report.html``, ``report.md`` and ``report.csv``, all or none.

    Args:
        runs (list[Run]): At least one, with different names; differences are to the first. They get notes for what is
            missing.
        out (str | Path): The folder to write to; made if it is not there.
        num_images (int): Images to show with ground truth beside predictions.
        score_thr (float): The score from which on a prediction is drawn, and counted as right or false there.
        figures (bool): Whether to write each plot as PDF and SVG for a paper too, into ``figures``.

    Returns:
        Path: Of the page, which needs no other file and no network.

    Raises:
        ValueError: Two runs have the same name.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f'runs need different names, got {" and ".join(names)}: set them with --names')
    evaluations = [evaluate_run(run) for run in runs]
    results, sources = tables.collect_results(runs, evaluations)
    papers = compare_with_papers(runs, results)
    differences, seeds = results - results.iloc[0], over_seeds(runs, results)
    facts = tables.collect_facts(runs)
    class_ap = tables.collect_class_ap(runs, evaluations)
    images = draw_images(runs, evaluations, num_images, score_thr)
    losses, metrics = loss_panels(runs), metric_panels(runs)
    class_tables = {TITLES[name]: by_first_run(table) for name, table in class_ap.items()}
    precisions, sizes = precision_panels(evaluations), size_tables(runs, evaluations)
    shown = shown_evaluations(runs, evaluations)
    confusions = {run.name: confusion(evaluation.coco_eval, score_thr) for run, evaluation in shown}
    drawn = {}
    if figures:
        dots = {f'{title} per class': (title, table) for title, table in class_tables.items()}
        dots |= {f'{title} by size': (title, table) for title, table in sizes.items()}
        drawn |= {panel.title: (plot_curves, panel, names) for panel in losses + metrics + precisions}
        drawn |= {title: (plot_dots, *table, PANEL[0], True) for title, table in dots.items()}
        drawn |= {f'Confusion {name}': (plot_confusion, name, matrix, PANEL[0]) for name, matrix in confusions.items()}
    drawn = dict(zip(file_names(drawn), drawn.values()))
    context = dict(
        runs=runs,
        results=results,
        papers=papers,
        differences=differences,
        sources=sources,
        facts=facts,
        class_ap=class_ap,
        images=images,
        score_thr=score_thr,
        colors=OUTCOME_COLORS,
        figures=list(drawn),
        seeds=seeds,
        findings=tables.in_short(results, seeds),
        titles=TITLES,
        tables=tables,
        loss_plot=draw_curves(losses, names) if losses else None,
        metric_plot=draw_curves(metrics, names) if metrics else None,
        class_plot=draw_dots(class_tables) if class_ap else None,
        precision_plot=draw_curves(precisions, names) if precisions else None,
        size_plot=draw_dots(sizes) if sizes else None,
        confusion_plot=draw_confusion(confusions) if confusions else None,
        confused=most_confused(confusions),
    )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    contents = {out / name: render(f'{name}.j2', context) for name in ('report.html', 'report.md')}
    differences = differences.round(6).add_suffix(f' - {names[0]}') if len(runs) > 1 else None
    contents[out / 'report.csv'] = tables.to_csv(pd.concat([results, differences, facts.T], axis=1))
    for name, plot in drawn.items():
        (out / 'figures').mkdir(exist_ok=True)
        contents |= {out / f'figures/{name}.{suffix}': content for suffix, content in for_paper(*plot).items()}
    write_together(contents)
    return out / 'report.html'


def loss_panels(runs):
    """Return a panel for every loss term of all runs."""
    terms = dict.fromkeys(term for run in runs for term in run.loss_terms)
    return [Panel(term, 'Loss', [run.train.get(term) for run in runs], smooth=True) for term in terms]


def metric_panels(runs):
    """Return panels of the learning rate and of validation metrics over training."""
    logged = list(dict.fromkeys(name for run in runs for name in run.val))
    others = [name for name in logged if name not in COCO_NAMES.values()][:MAX_OTHER_METRICS]
    panels = []
    if any('lr' in run.train for run in runs):
        panels.append(Panel('Learning rate', '', [run.train.get('lr') for run in runs]))
    panels += [
        Panel(title, 'AP (%)', [run.val.get(name) for run in runs]) for name, title in TITLES.items() if name in logged
    ]
    return panels + [
        Panel(name, '%' if name in SEGMENTATION_METRICS else '', [run.val.get(name) for run in runs]) for name in others
    ]


def by_first_run(table):
    """Return a table of classes with the first run's best class on top."""
    return table.sort_values(table.columns[0], ascending=False)


def shown_evaluations(runs, evaluations):
    """Return (Run, Evaluation) of each run that has one: of its masks, or else of its boxes."""
    return [
        (run, evaluation.get('segm') or evaluation['bbox']) for run, evaluation in zip(runs, evaluations) if evaluation
    ]


def file_names(titles):
    """Return a name for a file (str) for each title: letters, digits and _, and no two alike, whatever the case."""
    names = []
    for title in titles:
        name = re.sub(r'[^a-z0-9]+', '_', title.lower()).strip('_')[:60] or 'figure'
        taken = sum(re.fullmatch(rf'{name}(_\d+)?', other) is not None for other in names)
        names.append(f'{name}_{taken + 1}' if taken else name)
    return names


def draw_images(runs, evaluations, number, score_thr):
    """Return what ``compare_images`` makes of the runs that were tested on the same images as the first evaluated one;
    the others get a note."""
    tested = shown_evaluations(runs, evaluations)
    if not tested:
        return []
    first = tested[0][0]
    alike = []
    for run, evaluation in tested:
        if (run.ann_file, run.img_dir) == (first.ann_file, first.img_dir):
            alike.append((run, evaluation))
        else:
            run.notes.append(
                f'It was tested on {run.ann_file} with images from {run.img_dir}, {first.name} on '
                f'{first.ann_file} with images from {first.img_dir}: unless these are the same, '
                'differences between the two may come from the data. Its predictions are not shown.'
            )
    return compare_images(*map(list, zip(*alike)), number, score_thr)


def render(name, context):
    """Return a template, filled: what goes into a page is escaped as HTML, what goes into ``*.md`` as Markdown."""
    page = name.endswith('.html.j2')
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=page,
        finalize=visible_html if page else escape_markdown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= dict(
        data_uri=data_uri,
        breakable=breakable,
        metric=tables.format_metric,
        difference=tables.format_difference,
        fact=tables.format_fact,
    )
    return environment.get_template(name).render(context)


def breakable(text):
    """A text as HTML (Markup) that may go on in a new line where the parts of a path or name end."""
    return Markup('<wbr>').join(re.split(r'(?<=[_/])(?=\w)|(?<=[A-Za-z]\.)(?=\w)|(?<=\.)(?=[A-Za-z])', visible(text)))


def visible_html(value):
    """What jinja2, which escapes it then, shall write of a value."""
    return visible(value) if isinstance(value, (str, Path)) and not isinstance(value, Markup) else value


def escape_markdown(value):
    """What jinja2 shall write of a value into Markdown."""
    return in_markdown(value) if isinstance(value, (str, Path)) and not isinstance(value, Markup) else value


def data_uri(content, mime_type):
    """Return bytes as a data URI."""
    return f'data:{mime_type};base64,{base64.b64encode(content).decode()}'
