"""The pages of configs are what the metafile gives, can be read without scrolling, and their links lead somewhere."""

import re
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from mmnorm.cli import main
from mmnorm.zoo import PAPERS, TASKS, load_zoo, pages
from mmnorm.zoo.rows import HEADLINE, load_rows_without_config

CONFIGS = Path(__file__).parents[2] / 'configs'
FILES = [CONFIGS / 'README.md', *(CONFIGS / paper / 'README.md' for paper in PAPERS)]


def parse(path):
    """The tokens of a page, those of its lines included, in their order."""
    tokens = MarkdownIt('commonmark').enable('table').parse(path.read_text())
    return [part for token in tokens for part in (token, *(token.children or ()))]


def anchors(path):
    """The places in a page that a link can lead to: headings in lower case, without punctuation, spaces as hyphens."""
    titles = [after.content for token, after in pairwise(parse(path)) if token.type == 'heading_open']
    return [''.join(c for c in title.lower().replace(' ', '-') if c.isalnum() or c in '-_') for title in titles]


def table_rows(path):
    """The lines of the tables of a page (list[dict]), by column."""
    rows, header, cells = [], None, []
    for token in parse(path):
        if token.type == 'tr_open':
            cells = []
        elif token.type == 'inline':
            cells.append(token.content)
        elif token.type == 'tr_close' and header:
            rows.append(dict(zip(header, cells, strict=True)))
        elif token.type == 'tr_close':
            header = cells
        elif token.type == 'table_close':
            header = None
    return rows


def test_pages_are_what_the_metafile_gives(tmp_path, monkeypatch):
    index = tmp_path / 'README.md'
    index.write_text((CONFIGS / 'README.md').read_text().partition(pages.MARK)[0])
    for paper in PAPERS:
        (tmp_path / paper).mkdir()
    monkeypatch.setattr(pages, 'INDEX', index)
    written = pages.write_pages(list(load_zoo().values()))
    assert {path.relative_to(tmp_path) for path in written} == {path.relative_to(CONFIGS) for path in FILES}
    for path in written:
        committed = CONFIGS / path.relative_to(tmp_path)
        assert path.read_text() == committed.read_text(), f'tools/zoo.py table --write gives another {committed}'


def test_command_prints_the_pages_of_what_is_chosen(capsys):
    assert main(['zoo', 'table', '--paper', 'bgn']) == 0
    assert capsys.readouterr().out.strip() == (CONFIGS / 'bgn/README.md').read_text().strip()


def test_no_other_pages_and_no_long_lines():
    assert sorted(CONFIGS.rglob('*.md')) == sorted(FILES)
    for path in FILES:
        assert max(map(len, path.read_text().splitlines())) <= 200, path


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.parent.name)
def test_links_lead_somewhere(path):
    links = [token.attrs['href'] for token in parse(path) if token.type == 'link_open']
    assert links
    for link in links:
        if link.startswith('https://'):
            continue
        target, _, anchor = link.partition('#')
        file = path.parent / target if target else path
        assert file.is_file(), link
        if anchor:
            assert anchors(file).count(anchor) == 1, link


def name_in(line):
    """The name of the config of a line of a table; '' if it has none."""
    return re.match(r'(?:\[(\w+)\]|$)', line['config'])[1] or ''


@pytest.mark.parametrize('paper', PAPERS)
def test_every_row_and_every_config_is_on_its_page(paper):
    shown = [
        (
            name_in(line),
            line['norm'],
            line.get('row', ''),
            {key: float(line[key]) for key in HEADLINE if line.get(key)},
        )
        for line in table_rows(CONFIGS / paper / 'README.md')
    ]
    wanted = [
        (
            model.name,
            model.norm,
            row.row if row else '',
            {key: value for key, value in row.metrics.items() if key in HEADLINE} if row else {},
        )
        for model in (*load_zoo().values(), *load_rows_without_config())
        if model.paper == paper
        for row in model.published or [None]
    ]
    assert sorted(map(str, shown)) == sorted(map(str, wanted))


@pytest.mark.parametrize('paper', PAPERS)
def test_numbers_lead_to_the_weights_and_the_note_of_a_config(paper):
    items, title, zoo = {'Weights': [], 'Notes': []}, '', load_zoo()
    for token, after in pairwise(parse(CONFIGS / paper / 'README.md')):
        if token.type == 'heading_open':
            title = after.content
        elif token.type == 'paragraph_open' and token.hidden:  # of a list
            items.setdefault(title, []).append(' '.join(after.content.split()))
    for line in table_rows(CONFIGS / paper / 'README.md'):
        if not name_in(line):
            (number,) = line['notes'].split(', ')
            assert items['Notes'][int(number) - 1].startswith('No config')
            continue
        model = zoo[name_in(line)]
        told = [items['Weights'][int(line['weights']) - 1]] if line.get('weights') else []
        assert [text.partition(': ')[0] for text in told] == ([model.pretrained['Source']] if model.pretrained else [])
        notes = [items['Notes'][int(number) - 1] for number in filter(None, line.get('notes', '').split(', '))]
        assert not model.note or ' '.join(model.note.split()) in notes
        rows = [row for row in model.published if row.row == line.get('row', '')]
        assert any('--cfg-options' in note for note in notes) == any(row.options for row in rows)
        assert any('tools/zoo.py sweep' in note for note in notes) == bool(model.sweep)


def test_index_counts_every_config():
    tables = {(model.name, row.table) for model in load_zoo().values() for row in model.published}
    more = [model for model in load_zoo().values() if not model.published]
    assert sum(int(line['configs']) for line in table_rows(CONFIGS / 'README.md')) == len(tables) + len(more)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.parent.name)
def test_tables_are_grouped_by_task_and_the_many_of_classification_come_last(path):
    zoo = load_zoo()
    if path.parent == CONFIGS:
        titles = [after.content for token, after in pairwise(parse(path)) if token.type == 'heading_open']
        shown = [title.lower() for title in titles if title.lower() in TASKS]
    else:
        shown = [zoo[name_in(line)].task for line in table_rows(path) if name_in(line)]
    order = [task for task, _ in groupby(shown)]
    assert order == [task for task in TASKS if task in shown] and order[-1] == 'classification'


def test_a_name_without_an_architecture_is_told():
    zoo = load_zoo()
    models = [*zoo.values(), replace(zoo['mask_rcnn_xbn_r50'], name='yolof_xbn_r50')]
    with pytest.raises(ValueError, match='the name yolof_xbn_r50 begins with none of .*add its architecture'):
        pages.make_index(models)
