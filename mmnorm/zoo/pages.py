"""The pages of ``configs``: short tables by task, and for each paper a page with its rows, weights and notes."""

import re
import shlex
from pathlib import Path
from textwrap import fill

import pandas as pd

from mmnorm.files import write_text

from .rows import HEADLINE, METAFILE, PAPERS, TASKS, load_papers, load_rows_without_config

INDEX = METAFILE.with_name('README.md')
MARK = '<!-- What follows is written by tools/zoo.py table --write -->\n'
ARCHITECTURES = {  # by how the names of their configs begin; the longest first
    'deeplabv3plus': 'DeepLabV3+',
    'panoptic_fpn': 'Panoptic FPN',
    'faster_rcnn': 'Faster R-CNN',
    'mask_rcnn': 'Mask R-CNN',
    'retinanet': 'RetinaNet',
    'deeplabv3': 'DeepLabV3',
    'deeplab': 'DeepLab',
    'pspnet': 'PSPNet',
}


def make_pages(models):
    """Make the pages of the papers.

    Args:
        models (list[Model]): The configs to show; a paper without any has no page. Rows that have no config are shown
            behind those of their table that have one.

    Returns:
        dict[Path, str]: Markdown by the file that it is for.
    """
    papers, more = load_papers(), load_rows_without_config()
    return {
        INDEX.parent / name / 'README.md': _make_page(name, papers[name], chosen, more)
        for name in PAPERS
        if (chosen := [model for model in models if model.paper == name])
    }


def make_index(models):
    """Make ``configs/README.md``: what stands there up to the mark, and behind it a table of configs for each task.

    Args:
        models (list[Model]): All configs.

    Returns:
        str: Markdown.

    Raises:
        ValueError: The name of a config does not tell its architecture.
    """
    parts = [INDEX.read_text().partition(MARK)[0] + MARK]
    for task in TASKS:
        parts.append(f'## {task.capitalize()}\n\n{_index_table([model for model in models if model.task == task])}\n')
    listed = ''.join(f'- [{name}]({name}/README.md): {paper.title}\n' for name, paper in load_papers().items())
    return '\n'.join([*parts, f'## Papers\n\n{listed}'])


def write_pages(models):
    """Write the pages of the papers and ``configs/README.md`` for all configs (list[Model]); returns the files."""
    pages = make_pages(models) | {INDEX: make_index(models)}
    for path, text in pages.items():
        write_text(path, text)
    return list(pages)


def _index_table(models):
    """A line for each section of the papers' pages, and for each architecture in it; of classifiers the backbone is."""
    groups, classify = {}, models[0].task == 'classification'
    for model in models:
        for title in dict.fromkeys(_section(model, row) for row in model.published or [None]):
            key = '' if classify else _architecture(model), model.paper, title
            groups.setdefault(key, []).append(model)
    lines = []
    for (architecture, paper, title), group in sorted(
        groups.items(), key=lambda item: (item[0][0], PAPERS.index(item[0][1]), *_place(item[0][2]))
    ):
        line = {} if classify else {'model': architecture}
        for column in ('backbone', 'norm', 'mode', 'data') if classify else ('norm', 'mode', 'backbone', 'data'):
            line[column] = _join([getattr(model, column) for model in group])
        short = title if group[0].published else 'more'
        lines.append(line | {'configs': len(group), 'page': f'[{paper}: {short}]({paper}/README.md#{_anchor(title)})'})
    return _to_markdown(pd.DataFrame(lines))


def _join(names):
    """Each name once, without the word that it shares with the first: "ShuffleNetV2 1.0x, 0.5x"."""
    first, *others = dict.fromkeys(names)
    word = first.partition(' ')[0] + ' '
    return ', '.join([first, *(name.removeprefix(word) for name in others)])


def _architecture(model):
    for start, name in ARCHITECTURES.items():
        if model.name.startswith(start):
            return f'{name} C4' if '_c4' in model.name else name
    raise ValueError(
        f'the name {model.name} begins with none of {", ".join(ARCHITECTURES)}: add its architecture to '
        f'ARCHITECTURES in {__file__}'
    )


def _section(model, row):
    """Title of the section that shows a row of a config or, if row is None, a config without rows."""
    return row.table.removeprefix(f'{model.paper} ') if row else f'More {model.task}'


def _anchor(title):
    """What Markdown viewers call the place of a heading."""
    return re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-')


def _make_page(name, paper, models, more):
    sections, weights, notes = {}, {}, {}
    for model in sorted(models, key=lambda model: TASKS.index(model.task)):
        for row in model.published or [None]:
            sections.setdefault(_section(model, row), []).append((model, row))
    for model in more:
        for row in model.published:
            if model.paper == name and (shown := sections.get(_section(model, row))):
                shown.append((model, row))
    order = sorted(sections, key=lambda title: (TASKS.index(_task(sections[title])), *_place(title)))
    tasks = {}
    for title in order:
        tasks.setdefault(_task(sections[title]), []).append(f'[{title}](#{_anchor(title)})')
    listed = ''.join(_to_item('-', f'{task.capitalize()}: {", ".join(titles)}') for task, titles in tasks.items())
    parts = [
        f'# {name}\n\n*{paper.title}*:\n<{paper.url}>\n\n'
        "Figures are the paper's, in percent; `tools/zoo.py show NAME` has all of a config. [The README of all\n"
        f'configs](../README.md) says how to use them and what the modes are.\n\n{listed}'
    ]
    for title in order:
        parts.append(_make_section(title, sections[title], weights, notes))
    if weights:
        parts.append(
            '## Weights\n\nWhat the configs start from, with its license, or what to do where nothing '
            'exists:\n\n'
            f'{_to_list(weights)}'
        )
    if notes:
        parts.append(f'## Notes\n\n{_to_list(notes)}')
    return '\n'.join(parts)


def _task(rows):
    return rows[0][0].task


def _place(title):
    """By what the sections of a task are sorted: tables, figures and text, and what has no row in any."""
    return title.startswith('More '), title.startswith(('Figure ', 'Section ')), title


def _make_section(title, rows, weights, notes):
    table = pd.DataFrame([_make_line(model, row, weights, notes) for model, row in rows])
    for key in HEADLINE:
        decimals = table[key].str.partition('.')[2].str.len().max()  # as many as the paper has
        table[key] = [f'{float(figure):.{decimals}f}' if figure else '' for figure in table[key]]
    model, row = rows[0]
    told = [model.task.capitalize() if row else "Without a row in the paper's tables"]
    for column in table:
        cell = table[column].iloc[0]
        if (table[column] == cell).all() and (not cell or column in ('mode', 'backbone', 'data')):
            table = table.drop(columns=column)
            told += [f'{column} {cell}'] if cell else []
    return f'## {title}\n\n{", ".join(told)}.\n\n{_to_markdown(table)}\n'


def _make_line(model, row, weights, notes):
    """What the table of a section shows; weights and notes (dict[str, int]) are numbered as they come."""
    numbers = sorted(_number(note, notes) for note in _notes(model, row))
    metrics = row.metrics if row else {}
    return {
        'config': f'[{model.name}]({_link(model.config, model)})' if model.config else '',
        'row': row.row if row else '',
        'norm': model.norm,
        'mode': model.mode,
        'backbone': model.backbone,
        'data': row.data if row else model.data,
        'weights': str(_number(_describe(model), weights)) if model.pretrained else '',
        'notes': ', '.join(map(str, numbers)),
        **{key: str(metrics.get(key, '')) for key in HEADLINE},
    }


def _number(text, numbers):
    return numbers.setdefault(text, len(numbers) + 1)


def _link(config, model):
    """Where a config is, seen from the page of a model's paper."""
    return config.removeprefix(f'configs/{model.paper}/').replace('configs/', '../')


def _describe(model):
    found = model.pretrained
    text = f'{found["Source"]}: {found.get("Licence") or found["Instead"]}'
    source = found.get('From')
    return f'{text}; pretraining: [{Path(source).stem}]({_link(source, model)})' if source else text


def _notes(model, row):
    if model.note:
        yield model.note
    if row and row.options:
        options = ' '.join(shlex.quote(f'{key}={value}') for key, value in row.options.items())
        yield f'Its test adds `--cfg-options {options}`.'
    for option, values in model.sweep.items():
        yield (
            f'The paper searched {option} among {", ".join(map(str, values))}, as `tools/zoo.py sweep NAME '
            'NUM_PROCESSES` does.'
        )


def _to_list(numbers):
    return ''.join(_to_item(f'{number}.', text) for text, number in numbers.items())


def _to_item(mark, text):
    """A line of a list, or several."""
    indent = ' ' * (len(mark) + 1)
    lines = fill(f'{mark} {text}', 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return f'{lines}\n'


def _to_markdown(table):
    # cells are Markdown of ours: links stay links, and only the bars of the papers' rows ("GN | SN") would end a cell
    table = table.map(lambda cell: str(cell).replace('|', r'\|')).set_index(table.columns[0])
    return table.to_markdown(disable_numparse=True, colalign=['left'] * (1 + len(table.columns)))
