"""Tables of the report, as pandas DataFrames, and how their cells are written."""

import pandas as pd
from markupsafe import Markup

from .runs import ACCURACY_NAMES, COCO_NAMES, MARKS, PANOPTIC_NAMES, SEGMENTATION_METRICS, as_dict
from .seeds import seed_of
from .texts import in_csv, in_markdown

TITLES = {'AP^bbox': 'Box AP', 'AP^mask': 'Mask AP'}
HEADLINES = TITLES | {'PQ': 'PQ', 'mIoU': 'mIoU', 'top-1': 'Top-1 accuracy'}  # by which networks are judged, in percent
MEMORY_KINDS = {'rss': 'resident', 'cuda': 'CUDA'}


def collect_results(runs, evaluations):
    """Return the final metrics of every run.

    Args:
        runs (list[Run]): Get a note where predictions and log disagree.
        evaluations (list[dict[str, Evaluation]]): Of each run.

    Returns:
        tuple[DataFrame, dict[str, list[str]]]: Runs in rows and metrics in columns, COCO's first and in the papers'
        order, NaN where a run has none or there are no objects of that size; and the sources of the figures, each with
        the runs whose figures it gave.
    """
    metrics, sources = {}, {}
    for run, evaluation in zip(runs, evaluations):
        metrics[run.name], source = final_metrics(run, evaluation)
        sources.setdefault(source, []).append(run.name)
    results = pd.DataFrame(list(metrics.values()), index=list(metrics), dtype=float)
    coco = [name for name in COCO_NAMES.values() if name in results]
    return results[coco + [name for name in results if name not in coco]], sources


def final_metrics(run, evaluations):
    """Return a run's final metrics (dict) and where they are from (str): its predictions, or else the newest test, or
    else the last validation."""
    if run.test:
        logged, source = run.test, 'the log of the newest test'
    elif not run.val.empty:
        logged, source = (
            run.val.iloc[-1].to_dict(),
            f'the log of the validation after {run.val.index.name} {run.val.index[-1]}',
        )
    else:
        logged, source = {}, 'nowhere: it was not evaluated'
    evaluated = {
        f'{metric}^{MARKS[iou_type]}': value
        for iou_type, evaluation in evaluations.items()
        for metric, value in evaluation.summary.items()
    }
    if not evaluated:
        return logged, source
    differing = [name for name, value in evaluated.items() if abs(value - logged.get(name, value)) > 0.05]
    if differing:
        name = differing[0]
        run.notes.append(
            f'The predictions give {name} {evaluated[name]:.1f}, {source} says {logged[name]:.1f}: they '
            'are probably of different checkpoints or different test sets.'
        )
    files = ' and '.join(f'predictions.{iou_type}.json' for iou_type in evaluations)
    images = len(next(iter(evaluations.values())).coco_eval.params.imgIds)
    return {**logged, **evaluated}, f'{files}, evaluated with pycocotools on {images:,} test images'


def group_metrics(results):
    """Return the metrics (columns) of the results by the title of the table that shows them."""
    titles = {'^bbox': 'Boxes, AP in %', '^mask': 'Masks, AP in %'}
    groups = {}
    for name in results:
        title = 'Panoptic quality in %' if name in PANOPTIC_NAMES.values() else 'Metrics'
        title = 'Accuracy in %' if name in ACCURACY_NAMES.values() else title
        groups.setdefault(titles[name[-5:]] if name in COCO_NAMES.values() else title, []).append(name)
    return groups


def in_short(results, seeds):
    """Return what the results come to: a sentence (str) for each metric that networks are judged by.

    Args:
        results (DataFrame): As :func:`collect_results` gives them.
        seeds (list[OverSeeds]): Runs that differ only in their seed.
    """
    sentences = []
    for name, title in HEADLINES.items():
        values = results[name].dropna() if name in results else ()
        if not len(values):
            continue
        best, first = values.idxmax(), results.index[0]
        if len(seeds) > 1:
            groups = (
                f'{group.name} {format_deviation(group.mean[name], group.deviation[name], name)}' for group in seeds
            )
            sentences.append(f'{title}, mean and deviation over seeds: {", ".join(groups)}.')
        elif values.nunique() == 1:
            where = '' if len(results) == 1 else f' in {best}' if len(values) == 1 else ' in each run'
            sentences.append(f'{title}: {format_metric(values[best], name)} %{where}.')
        else:
            difference = format_difference(values[best] - results.at[first, name], name)
            beyond = f', {difference} from {first}' if best != first and difference else ''
            sentences.append(f'{title}: highest in {best}, {format_metric(values[best], name)} %{beyond}.')
    if sentences and len(results) > 1 and not seeds:
        sentences.append('Each run is one training: what another seed would change is not known.')
    return sentences


def collect_facts(runs):
    """Return what was run, how, on what and for how long: facts in rows, runs in columns, None where unknown."""
    return pd.concat([pd.Series(run_facts(run), name=run.name, dtype=object) for run in runs], axis=1)


def run_facts(run):
    """Return the facts about one run (dict), from ``run.json`` or, where that is silent, from config and logs."""
    info, times = run.info, run.iteration_times
    seed = seed_of(run)
    commit = info.get('commit')
    per_process = as_dict(run.config.get('train_dataloader')).get('batch_size')
    iterations = info.get('iterations') or (None if run.train.empty else run.train.index[-1])
    seconds = info.get('train_seconds')
    facts = {
        'Work dir': str(run.work_dir),
        'Config': info.get('config') or (run.config_file and run.config_file.name),
        'Commit': commit and commit[:12] + (' and uncommitted changes' if info.get('dirty') else ''),
        'Seed': None if seed is None else str(seed),
        'Device': info.get('device'),
        'Processes': info.get('world_size'),
        'Batch size': info.get('batch_size') or (per_process and f'{per_process} per process'),
        'Versions': join_items(info.get('versions')),
        'Norm layers': join_items(info.get('norms')),
        'Parameters': info.get('num_parameters'),
        'Started': minutes(info.get('started')),
        'Finished': minutes(info.get('finished')) or (info and 'not yet') or None,
        'Tested checkpoint': run.checkpoint,
        'Iterations': iterations,
        'Training time (min)': round_known(seconds and seconds / 60, 1),
        'Time per iteration, median (ms)': round_known(1000 * times.median()),
        'Time per iteration, mean (ms)': round_known(1000 * times.mean()),
    }
    memory, kind = info.get('peak_memory_mb'), info.get('peak_memory_kind')
    if memory is None and 'memory' in run.train:
        memory, kind = run.train['memory'].max(), 'cuda'
    facts[f'Peak memory{", " + MEMORY_KINDS[kind] if kind in MEMORY_KINDS else ""} (MiB)'] = round_known(memory)
    return facts


def made(result):
    """Return how a page's figures came about (dict of str), as far as the result (dict) says."""
    facts = {name.capitalize(): result[name] for name in ('command', 'date', 'seed', 'device') if name in result}
    return {name: str(value) for name, value in facts.items()} | {'Versions': join_items(result['versions'])}


def minutes(time):
    """Return an ISO time as date, hours and minutes; None if it is None."""
    return time and time[:16].replace('T', ' ')


def join_items(counts):
    """Return a dict as 'key value, key value'; None if it is empty or None."""
    return ', '.join(f'{key} {value}' for key, value in counts.items()) if counts else None


def round_known(value, digits=None):
    """Return a number rounded, to an integer by default; None if it is None or NaN."""
    return None if pd.isna(value) else round(float(value), digits)


def collect_class_ap(runs, evaluations):
    """Return AP in percent per class: by 'AP^bbox' and 'AP^mask' a DataFrame of classes (rows) and runs (columns)."""
    tables = {}
    for iou_type, mark in MARKS.items():
        columns = {
            run.name: evaluation[iou_type].per_class
            for run, evaluation in zip(runs, evaluations)
            if iou_type in evaluation
        }
        if columns:
            tables[f'AP^{mark}'] = pd.DataFrame(columns).reindex(columns=[run.name for run in runs])
    return tables


def format_metric(value, name):
    """Return a metric as text; '–' if there is none."""
    return '–' if pd.isna(value) else f'{value:{number_format(name)}}'


def format_difference(value, name):
    """Return a difference of metrics as text, with its sign; '' if there is none."""
    return '' if pd.isna(value) else f'{round(value, 6) + 0.0:+{number_format(name)}}'.replace('-', '−')  # no -0.0


def number_format(name):
    """Return the format of a metric's values: decimals as in the papers, or four digits of what is not known."""
    if name in COCO_NAMES.values() or name in PANOPTIC_NAMES.values():
        return '.1f'
    return '.2f' if name in (*SEGMENTATION_METRICS, *ACCURACY_NAMES.values()) else '.4g'


def format_fact(value):
    """Return a fact as text."""
    if isinstance(value, str):
        return value
    return 'unknown' if pd.isna(value) else f'{value:,}'


def results_markdown(results):
    """Return the results as a Markdown table, with differences to the first run in brackets."""
    cells = results.astype(object)
    for name in results:
        first, *others = results[name]
        differences = [format_difference(value - first, name) for value in others]
        cells[name] = [format_metric(first, name)] + [
            format_metric(value, name) + (f' ({difference})' if difference else '')
            for value, difference in zip(others, differences)
        ]
    return to_markdown(cells)


def format_deviation(mean, deviation, name):
    """Return a mean with its deviation as text; '–' if there is none."""
    return '–' if pd.isna(mean) else f'{format_metric(mean, name)} ± {format_metric(deviation, name)}'


def seeds_markdown(groups):
    """Return mean and deviation over seeds as a Markdown table."""
    return to_markdown(
        pd.DataFrame(
            [
                {name: format_deviation(group.mean[name], group.deviation[name], name) for name in group.mean.index}
                for group in groups
            ],
            index=[f'{group.name} (seeds {", ".join(map(str, group.seeds))})' for group in groups],
        )
    )


def paper_markdown(table):
    """Return the figures of a run, of a paper and their difference as a Markdown table."""
    cells = table.astype(object)
    for name in table:
        run, paper, difference = table[name]
        cells[name] = [format_metric(run, name), f'{paper:g}', format_difference(difference, name)]
    return to_markdown(cells)


def facts_markdown(facts):
    """Return the facts as a Markdown table."""
    return to_markdown(facts.map(format_fact), 'left')


def class_markdown(table, name):
    """Return the AP per class of all runs, called ``name``, as a Markdown table."""
    return to_markdown(table.map(lambda value: format_metric(value, name)))


def to_markdown(table, align='right'):
    """Return a DataFrame of texts as a Markdown table (Markup, of which nothing is left to escape)."""
    table = table.rename(index=in_markdown, columns=in_markdown).map(in_markdown)
    return Markup(table.to_markdown(disable_numparse=True, colalign=['left'] + [align] * len(table.columns)))


def to_csv(table):
    """Return a DataFrame with a row for each run as CSV."""
    return table.rename(index=in_csv, columns=in_csv).map(in_csv).to_csv(index_label='run')
