"""Texts and lines of the pages stand out from their ground, on white and in the dark, as WCAG 2 asks for."""

import re
import xml.etree.ElementTree
from pathlib import Path

import pandas as pd
import pytest

import mmnorm.report
from mmnorm.report import write_diagnosis
from mmnorm.report.images import OUTCOME_COLORS, ink_on
from mmnorm.report.learned import draw_averages, draw_ratios, draw_rbn, draw_spread
from mmnorm.report.plots import COLORS, STYLE, Panel, draw_confusion, draw_curves, draw_dots

from .test_report_diagnosis import RESULT
from .test_report_texts import Tags

CSS = Path(mmnorm.report.__file__).with_name('style.css.j2').read_text()
LIGHT, DARK = (dict(re.findall(r'--(\w+): (#\w+)', block)) for block in re.findall(r':root \{(.*)\}', CSS))
TEXT, GRAPHICS = 4.5, 3  # WCAG 2, levels AA of 1.4.3 and 1.4.11


def channels(color):
    """Red, green and blue from 0 to 1 of #rgb or #rrggbb."""
    digits = color.removeprefix('#')
    digits = ''.join(2 * digit for digit in digits) if len(digits) == 3 else digits
    return [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]


def contrast(*colors):
    """WCAG's contrast of two colors, each a list of channels."""
    luminances = [
        sum(
            weight * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
            for weight, part in zip((0.2126, 0.7152, 0.0722), color)
        )
        for color in colors
    ]
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


def in_the_dark(color):
    """What the page's filter makes of a plot's color (by the matrix of CSS's Filter Effects)."""
    (share,) = re.findall(r'\.drawn \{ filter: invert\(([.\d]+)\) hue-rotate\(180deg\);', CSS)
    inverted = [float(share) * (1 - part) + (1 - float(share)) * part for part in channels(color)]
    matrix = ((-0.574, 1.43, 0.144), (0.426, 0.43, 0.144), (0.426, 1.43, -0.856))
    turned = [sum(weight * part for weight, part in zip(row, inverted)) for row in matrix]
    return [min(max(part, 0), 1) for part in turned]


def grounds_and(color):
    """A color of a plot on paper and in the dark, each with its ground."""
    return (channels(color), channels(LIGHT['paper'])), (in_the_dark(color), channels(DARK['paper']))


def colors_of(svg):
    """Colors (sets of #rrggbb) of the texts of a plot, and of its lines and areas."""
    texts, graphics = set(), set()

    def walk(element, found):
        if element.get('id', '').startswith('text_'):
            found = texts
            found.update(re.findall(r'fill: (#\w{6})', element.get('style', '')) or ['#000000'] * (len(element) == 0))
        for color in re.findall(r'(?:stroke|fill): (#\w{6})', element.get('style', '')):
            found.add(color)
        for child in element:
            walk(child, found)

    walk(xml.etree.ElementTree.fromstring(svg), graphics)
    return texts, graphics - {STYLE['grid.color'], '#ffffff'}  # hints, and edges of dots


@pytest.fixture(scope='module')
def plots(tmp_path_factory):
    """SVGs of every kind of plot on the pages."""
    curve = pd.Series(range(1, 41), range(1, 41), dtype=float)
    names = [f'run {number}' for number in range(len(COLORS))]
    table = pd.DataFrame([range(1, len(names) + 1)] * 2, ['cup', 'can'], names)
    rows = [
        dict(name=f'layer{number}.0', part=f'stage{number}', mean=[0.5, 0.3, 0.2], var=[0.2, 0.5, 0.3], kl=0.3)
        | dict.fromkeys(('center_weight', 'abs_center_weight', 'scale_weight', 'abs_scale_weight', 'scale_bias'), 0.1)
        for number in range(3)
    ]
    averages = {'all': dict(layers=3, mean=[0.5, 0.3, 0.2], var=[0.2, 0.5, 0.3])}
    drawings = [
        draw_curves([Panel('loss', 'Loss', [curve] * len(names), smooth=True)], names),
        draw_dots({'Box AP': table}),
        draw_confusion({'run': pd.DataFrame([[9, 1, 0], [3, 4, 2], [1, 1, 0]], [*'abc'], [*'abc'])}),
        draw_ratios(rows, ['IN', 'LN', 'BN']),
        draw_averages(averages, ['IN', 'LN', 'BN']),
        draw_averages({'all': dict(layers=3, mean=[0.5, 0.5], var=[0.5, 0.5])}, ['BW', 'IW']),
        draw_rbn(rows),
        draw_spread({row['name']: dict(before=[1.0, 2.0], after=[0.5, 1.0]) for row in rows}, rows),
    ]
    svgs = [svg for drawing in drawings for svg in (*dict(drawing.panels).values(), *drawing.keys.values())]
    return svgs + Tags(write_diagnosis(RESULT, tmp_path_factory.mktemp('diagnosis')).read_text()).svgs


def test_plots(plots):
    faint = set()
    for texts, graphics in map(colors_of, plots):
        for colors, least in ((texts - {'#ffffff'}, TEXT), (graphics, GRAPHICS)):
            faint.update((color, least) for color in colors if min(contrast(*p) for p in grounds_and(color)) < least)
    assert not faint
    assert {color.lower() for color in COLORS} <= set().union(*(colors_of(svg)[1] for svg in plots))


def test_labels_of_boxes():
    for color in OUTCOME_COLORS.values():
        ink = dict(black='#000000', white='#ffffff')[ink_on(color)]
        assert contrast(channels(ink), channels(color)) > TEXT


def test_numbers_in_colored_areas_have_a_ground_of_their_own():
    counts = pd.DataFrame([[9, 1, 0], [3, 4, 2], [1, 1, 0]], [*'abc'], [*'abc'])
    averages = {'all': dict(layers=3, mean=[0.5, 0.3, 0.2], var=[0.2, 0.5, 0.3])}
    for drawing, numbers in ((draw_confusion({'run': counts}), 7), (draw_averages(averages, ['IN', 'LN', 'BN']), 3)):
        assert drawing.panels[0][1].count(b'stroke: #ffffff') == numbers


@pytest.mark.parametrize('colors', [LIGHT, DARK], ids=['light', 'dark'])
def test_texts(colors):
    for ground in ('paper', 'pale', 'note', 'advice'):
        for text in ('ink', 'soft', 'accent'):
            assert contrast(channels(colors[text]), channels(colors[ground])) > TEXT, (text, ground)


def test_badge():
    ground, text = re.findall(r'\.badge \{.*background: (#\w+); color: (#\w+);', CSS)[0]
    assert contrast(channels(ground), channels(text)) > TEXT


def test_the_dark_page_is_the_ground_of_its_plots():
    assert max(abs(ours - page) for ours, page in zip(in_the_dark('#ffffff'), channels(DARK['paper']))) < 0.04
