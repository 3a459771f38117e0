"""Texts from files: whatever is in a name, pages, Markdown, tables and plots stay what they are."""

import copy
import csv
import html.parser
import itertools
import json
import logging
import math
import re
import xml.etree.ElementTree
from base64 import b64decode

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from mmnorm.report import draw_perturbation, load_run, write_diagnosis, write_report
from mmnorm.report.learned import draw_averages, draw_rbn, draw_spread
from mmnorm.report.plots import (
    Drawing,
    Panel,
    as_svg,
    draw_confusion,
    draw_curves,
    draw_dots,
    for_paper,
    line_style,
    marker_style,
    plot_curves,
)
from mmnorm.report.texts import in_csv, in_markdown, one_line, visible

from .conftest import coco_line, train_line, write_session
from .test_report_diagnosis import RESULT

# What HTML, Markdown, XML, a terminal, a spreadsheet and matplotlib would make something of
EVIL = (
    '=_<img src=x onerror=alert(1)>[a](http://e.com)![b](http://e.com) `c` **d** __e__ ~~f~~ | g \\ & <!-- h '
    '--> $x$ $\\frac{ "\'\n\n# i\n- j\r\x00\x1b[31m\x07\u202e\ud800 www.e.com http://e.com a@e.com {{ k }} {% l %}'
)
SAFE_TAGS = {'strong', 'em', 'code', 's', 'del', 'img', 'a', 'script', 'blockquote', 'hr', 'h3', 'h4', 'pre'}


class Tags(html.parser.HTMLParser):
    """Tags of a page with their attributes, and the pictures in it."""

    def __init__(self, page):
        super().__init__()
        self.found, self.svgs = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag != 'wbr':
            self.found.append((tag, sorted(name for name, _ in attrs)))
        source = dict(attrs).get('src', '')
        if source.startswith('data:image/svg+xml;base64,'):
            self.svgs.append(b64decode(source.partition(',')[2]))


def check_page(evil, plain):
    """A page of evil texts has the tags of one of plain texts, nothing hidden, and plots that are XML."""
    evil, plain = evil.read_text(), plain.read_text()
    tags = Tags(evil)
    assert tags.found == Tags(plain).found
    assert not re.search('[\x00-\x08\x0b-\x1f\x7f\u202e]', evil) and 'alert(1)' in evil
    for svg in tags.svgs:
        xml.etree.ElementTree.fromstring(svg)
    return len(tags.svgs)


def write_work_dir(folder, data_root, text):
    """A run in whose files every name, key and text is this one."""
    work_dir = folder / 'work'
    annotations = json.loads((data_root / 'val.json').read_text())
    for number, category in enumerate(annotations['categories']):
        category['name'] = text + str(number)
    (folder / 'images').mkdir(parents=True)
    shown = f'{text[:20]}.png'.replace('/', '')
    for image in annotations['images']:
        (folder / 'images' / f'{image["id"]}{shown}').symlink_to(data_root / f'images/{image["file_name"]}')
        image['file_name'] = f'{image["id"]}{shown}'
    (folder / 'val.json').write_text(json.dumps(annotations))
    lines = [train_line(step, **{f'loss_{text}': 1.0}) for step in (10, 20, 30)]
    lines += [coco_line(1, 0.1) | {text: 0.5, f'm{text}': math.inf}]
    write_session(work_dir, '20250101_120000', lines)
    dataset = dict(ann_file='val.json', data_prefix=dict(img='images/'), data_root=str(folder), type=text)
    config = dict(test_dataloader=dict(dataset=dataset), text=text)
    (work_dir / 'c.py').write_text(
        ''.join(f'{key} = {ascii(value)}\n' for key, value in config.items()), encoding='utf-8'
    )
    for iou_type in ('bbox', 'segm'):
        found = [dict(one, score=0.9) for one in annotations['annotations']]
        (work_dir / f'predictions.{iou_type}.json').write_text(json.dumps(found))
    (work_dir / '20250101_130000').mkdir()
    (work_dir / '20250101_130000/20250101_130000.json').write_text(json.dumps({text: 1.0, 'mIoU': 2.0}))
    (work_dir / 'evaluation.json').write_text(
        json.dumps(dict(checkpoint=text, timestamp='20250101_130000', metrics={text: 1.0}))
    )
    info = dict.fromkeys(('config', 'commit', 'device', 'started', 'finished', 'peak_memory_kind'), text)
    (work_dir / 'run.json').write_text(
        json.dumps(info | dict(seed=text, versions={text: text}, norms={text: text}, peak_memory_mb=1.5))
    )
    return work_dir


@pytest.fixture(scope='module')
def told():
    """What the log says while the pages are made."""
    messages, logger = [], logging.getLogger('mmnorm')
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture(scope='module')
def reports(tmp_path_factory, data_root, told):
    """The page of evil texts, and the same of a plain one; two runs each."""
    root, pages = tmp_path_factory.mktemp('texts'), []
    for text in (EVIL, 'plain text'):
        work_dir = write_work_dir(root / str(len(pages)), data_root, text)
        runs = [load_run(work_dir, text), load_run(work_dir, f'{text} 2')]
        pages.append(write_report(runs, root / f'out{len(pages)}', num_images=2))
    return pages


def test_report_page(reports):
    # of training, of classes, precision, sizes and confusions; five of them with a key for each run
    assert check_page(*reports) == 9 + 2 + 6 + 2 + 2 + 5 * 2


def test_log(reports, told):
    assert any('alert(1)' in message for message in told)
    assert not [message for message in told if re.search('[\x00-\x1f\x7f\u202e\ud800]', message)]


def test_report_markdown(reports):
    evil, plain = (page.with_suffix('.md').read_text() for page in reports)
    for text in (evil, plain):
        assert len(text.splitlines()) == len(plain.splitlines())
    rendered = [
        Tags(MarkdownIt('commonmark').enable(['table', 'strikethrough']).render(text)).found for text in (evil, plain)
    ]
    assert rendered[0] == rendered[1] and not SAFE_TAGS & {tag for tag, _ in rendered[0]}
    assert not re.search(r'(?<!\\)(@|www\.)|[^\\]://e|<|\x1b|\u202e', evil)


def test_report_csv(reports):
    with open(reports[0].with_suffix('.csv'), newline='') as file:
        rows = list(csv.reader(file))
    assert [len(row) for row in rows] == [len(rows[0])] * 3
    cells = [cell for row in rows for cell in row]
    assert not [cell for cell in cells if cell.startswith(('=', '@', '+', '\t', '\n'))]
    assert sum(cell.startswith("'=_<img") for cell in cells) > 8


def test_diagnosis_page(tmp_path):
    def write(text):
        result = copy.deepcopy(RESULT)
        for key in ('config', 'checkpoint', 'command', 'date', 'device'):
            result[key] = text
        result.update(versions={text: text}, notes=[text], not_run=[text], norms={text: 3})
        result['failed'] = dict(evalnorm_offline=text)
        result['headline'] = {repair: {text: 30.0} for repair in result['headline']}
        names = {layer['name']: f'{layer["name"]}.{text}' for layer in result['layers']}
        for layer in result['layers'][1:]:
            layer.update(name=names[layer['name']], part=text + layer['part'], type=text)
        result['histograms'][0]['layer'] = text
        result['evalnorm'] = {names[name]: values for name, values in result['evalnorm'].items()}
        result['recommendation'] = dict(repair=text, sentence=text, finding=text, command=text, levels=text)
        (tmp_path / str(len(text))).mkdir()
        return write_diagnosis(result, tmp_path / str(len(text)))

    assert check_page(write(EVIL), write('plain text')) == 4 + 1 + 1 + 2 + 3 + 3  # plots and keys


@pytest.mark.parametrize('text', [EVIL, '$\\frac{$', '', 'x' * 3000])
def test_plots(text):
    curve = pd.Series([1.0, 2.0], [1, 2])
    rows = [dict(name=f'layer.{text}', part=text, mean_pick=['IN'], var_pick=['IN'], kl=0.1, mean=[1, 0, 0])]
    columns = ('center_weight', 'abs_center_weight', 'scale_weight', 'abs_scale_weight', 'scale_bias')
    rows[0].update(dict.fromkeys(columns, 1.0), var=[1, 0, 0])
    averages = {text: dict(layers=1, mean=[1, 0, 0], var=[1, 0, 0])}
    spread = {rows[0]['name']: dict(before=[1.0, 2.0], after=[1.0, 2.0])}
    for drawing in (
        draw_curves([Panel(text, text, [curve, curve])], [text, f'{text}2']),
        draw_dots({text: pd.DataFrame({text: [1.0, 2.0], f'{text}2': [1.0, 2.0]}, index=[text, f'{text}2'])}),
        draw_confusion({text: pd.DataFrame([[1, 2], [3, 4]], [text, 'b'], [text, 'c'])}),
        Drawing([(text, draw_perturbation([dict(blocks=1, delta=0.1, metrics=[{text: 1.0}])]))], 1),
        Drawing([(text, for_paper(plot_curves, Panel(text, text, [curve, curve]), [text, f'{text}2'])['svg'])], 1),
        draw_averages(averages, ['IN', 'LN', 'BN']),
        draw_rbn(rows),
        draw_spread(spread, rows),
    ):
        for svg in (*(svg for _, svg in drawing.panels), *drawing.keys.values()):
            size = xml.etree.ElementTree.fromstring(svg).attrib
            assert float(size['width'].removesuffix('pt')) < 1200 and float(size['height'].removesuffix('pt')) < 1200


def test_classes_are_named():
    table = pd.DataFrame({'run': [1.0, 2.0]}, index=['cup', 'red & $x$'])
    (_, svg), _ = draw_dots({'Box AP': table, 'Mask AP': table}).panels
    assert svg.count(b'<!-- cup -->') == svg.count(b'<!-- red &amp; $x$ -->') + svg.count(b'<!-- red & $x$ -->') == 1


def test_runs_that_coincide_are_both_seen():
    """Two runs with the same curve: from the picture, both colors, in lines and in dots."""
    curve = pd.Series(range(1, 41), range(1, 41), dtype=float)
    for number in (2, 3, 4):
        styles = [line_style(index, number) for index in range(number)]
        assert len({str(style['linestyle']) for style in styles}) == number
        assert [style['linewidth'] for style in styles] == sorted((s['linewidth'] for s in styles), reverse=True)
        for below, above in itertools.pairwise(marker_style(index, number) for index in range(number)):
            assert below['marker'] != above['marker'] and below['markersize'] > above['markersize']
    drawing = draw_curves([Panel('loss', '', [curve, curve])], ['a', 'b'])
    for svg in (drawing.panels[0][1].decode(), drawing.keys['b'].decode()):
        assert re.search('stroke: #d55e00[^"]*stroke-dasharray|stroke-dasharray[^"]*stroke: #d55e00', svg)


def test_names_that_begin_with_an_underscore_are_in_the_legend():
    curve = pd.Series([1.0, 2.0], [1, 2])
    assert b'<!-- _run -->' in for_paper(plot_curves, Panel('loss', '', [curve, curve]), ['_run', 'other'])['svg']


def test_control_characters_are_no_xml():
    figure = Figure()
    figure.subplots().set(title='a\x1bb')
    xml.etree.ElementTree.fromstring(as_svg(figure))


@pytest.mark.parametrize(
    ('text', 'shown', 'line'),
    [
        ('a\nb\tc', 'a\nb\tc', 'a b c'),
        ('a\r\x1b\x85\xa0', 'a \ufffd  ', 'a \ufffd  '),
        ('\u202e\ud800', '\ufffd\ufffd', '\ufffd\ufffd'),
        ('née 漢 🙂', 'née 漢 🙂', 'née 漢 🙂'),
    ],
)
def test_visible(text, shown, line):
    assert visible(text) == shown and one_line(text) == line
    assert one_line(line, 2) == (line if len(line) < 3 else f'{line[0]}…')


@pytest.mark.parametrize(
    ('text', 'escaped'),
    [
        ('dist_test.sh 8_2 a_', 'dist_test.sh 8_2 a\\_'),
        ('[a](b) | *c* <d> & e', '\\[a\\](b) \\| \\*c\\* &lt;d&gt; &amp; e'),
        ('https://e.com www.e.com', 'https\\://e.com www\\.e.com'),
        ('AP^bbox −0.1 (+0.2)', 'AP^bbox −0.1 (+0.2)'),
    ],
)
def test_in_markdown(text, escaped):
    assert in_markdown(text) == escaped


@pytest.mark.parametrize(
    ('cell', 'written'),
    [
        ('=1+1', "'=1+1"),
        (' @sum', "' @sum"),
        ('\t+1 2', "' +1 2"),
        ('＝a', "'＝a"),
        ('-x', "'-x"),
        ('-1', '-1'),
        (-1.5, -1.5),
        ('a-b', 'a-b'),
        (None, None),
    ],
)
def test_in_csv(cell, written):
    assert in_csv(cell) == written


@pytest.mark.parametrize('value', [5, 'x', [1]])
def test_values_of_another_kind(make_run, value):
    work_dir = make_run()
    info = json.loads((work_dir / 'run.json').read_text())
    (work_dir / 'run.json').write_text(json.dumps(dict.fromkeys(info, value) | dict(cwd='.')))
    keys = ('train_dataloader', 'test_dataloader', 'val_dataloader', 'test_evaluator', 'randomness', 'train_cfg')
    (work_dir / 'mask_rcnn.py').write_text(''.join(f'{key} = {value!r}\n' for key in keys))
    run = load_run(work_dir)
    write_report([run], work_dir, num_images=0)
    assert any('of another kind than mmnorm writes' in note for note in run.notes)
