"""The page of a diagnosis: what it says, and that a browser shows it."""

import copy
import math

import numpy as np
import pytest
from PIL import Image

from mmnorm.report import draw_perturbation, write_diagnosis

from .test_report_browser import BROWSER, browse, count_pixels

EDGES = np.linspace(-4, 4, 81).tolist()


def layer(name, part, by_batch=True, size=0.2):
    return dict(
        name=name,
        type='BatchNorm2d',
        channels=8,
        part=part,
        by_batch=by_batch,
        esm_mu=1.5,
        esm_sigma=0.5,
        relative_mu=size,
        relative_sigma=0.1,
        domain_mu=0.1,
        domain_sigma=None,
        size=size,
        worst_channels=[dict(channel=3, mu=-0.7, sigma=0.2)],
    )


RESULT = dict(
    config='c.py',
    checkpoint='<b>k</b>.pth',
    command='tools/diagnose.py c.py',
    date='2026-01-01',
    device='a CPU',
    versions=dict(torch='2'),
    seed=0,
    batches=10,
    batch_size=2,
    notes=['Its training <i>synchronized</i> BN.'],
    failed=dict(evalnorm_offline='reasons'),
    norms=dict(BatchNorm2d=3),
    trained_by_batch=2,
    not_run=['head.bn'],
    metrics={},
    headline={'as it is': {'mIoU': 30.0}, 'recollect': {'mIoU': 31.5}, 'evalnorm_rule': {'mIoU': math.nan}},
    layers=[
        dict(layer('input', 'input', False), type='input'),
        layer('backbone.bn1', 'backbone.stem'),
        layer('backbone.layer1.0.bn1', 'backbone.stage1', size=0.9),
        layer('head.bn', 'head', False),
    ],
    edges=EDGES,
    histograms=[
        dict(
            layer='backbone.bn1',
            channel=3,
            by_batch=True,
            curves={
                'training, by batch statistics': np.exp(-(np.array(EDGES[:-1]) ** 2)).tolist(),
                'evaluation of test images': [0.1] * 80,
            },
        )
    ],
    evalnorm={
        'backbone.bn1': dict(alpha=0.2, beta=0.1, batch_size=2.0),
        'head.bn': dict(alpha=0, beta=0, batch_size=None),
    },
    recommendation=dict(
        repair='recollect',
        sentence='Recollect <them>.',
        finding='It is the data.',
        command="python tools/bn_statistics.py recollect 'k.pth'",
    ),
)


def test_page_says_what_was_found(tmp_path):
    page = write_diagnosis(RESULT, tmp_path).read_text().replace('<wbr>', '')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['diagnosis.html', 'diagnosis.json']
    for text in (
        'Recollect &lt;them&gt;.',
        'It is the data.',
        'recollect &#39;k.pth&#39;',
        '31.5',
        '+1.5',
        '2 of them trained by batch statistics',
        'Its training &lt;i&gt;synchronized&lt;/i&gt; BN.',
        'EvalNorm, estimated was not possible: reasons.',
        'No test image reached head.bn',
        '3: −0.70, +0.20',
        '<title>Diagnosis: &lt;b&gt;k&lt;/b&gt;.pth',
    ):
        assert text in page, text
    assert page.index('backbone.layer1.0.bn1') < page.index('backbone.bn1')  # the worst one first
    assert page.count('alt="Plot: ') == 4 + 1 + 1  # by depth, a channel, EvalNorm


def test_page_has_the_intervals_of_gains(tmp_path):
    said = write_diagnosis(RESULT, tmp_path).read_text()
    assert '±' not in said and 'so small gains prove nothing' in said
    confidence = dict(images=500, resamplings=200, confidence=0.95, intervals=dict(recollect={'mIoU': 0.62}))
    said = write_diagnosis(dict(RESULT, confidence=confidence), tmp_path).read_text()
    assert '<span class="difference">+1.5 ± 0.6</span>' in said and 'prove nothing' not in said
    assert '<td>–</td>' in said and '>+nan' not in said.lower()
    assert 'in 95 of 100 cases' in said and '200 resamplings of the 500 images' in said


def test_page_has_the_calls_of_shared_layers(tmp_path):
    shared = copy.deepcopy(RESULT)
    shared['layers'][2]['calls'] = [
        dict(relative_mu=0.31, relative_sigma=0.2),
        dict(relative_mu=2.43, relative_sigma=1),
    ]
    shared['recommendation']['levels'] = 'A norm <per> level.'
    page = write_diagnosis(shared, tmp_path).read_text()
    assert 'Layers that are called several times in a pass' in page and 'A norm &lt;per&gt; level.' in page
    assert '<td>2</td><td>2.43</td><td>1.00</td>' in page
    without = write_diagnosis(RESULT, tmp_path).read_text()
    assert 'Layers that are called several times in a pass' not in without


def test_page_of_fixed_statistics(tmp_path):
    fixed = copy.deepcopy(RESULT)
    for row in fixed['layers']:
        row['by_batch'] = False
    fixed.update(
        trained_by_batch=0,
        headline={'as it is': {'mIoU': 30.0}},
        evalnorm={},
        histograms=[],
        failed={},
        notes=[],
        recommendation=dict(repair=None, sentence='Leave them.', finding='Fixed.', command=None),
    )
    page = write_diagnosis(fixed, tmp_path).read_text()
    assert 'none of them trained by batch statistics' in page and 'is part of the trained function' in page
    assert 'Before and after' not in page and page.count('alt="Plot: ') == 4 and '<pre>' not in page


def test_perturbation_is_drawn():
    curves = [
        dict(blocks=blocks, delta=delta, metrics=[{'mIoU': 30.0 - delta - noise} for noise in range(3)])
        for blocks in (1, 6)
        for delta in (0, 0.5)
    ]
    svg = draw_perturbation(curves).decode()
    assert svg.startswith('<?xml') and '<svg' in svg


@pytest.mark.skipif(BROWSER is None, reason='no Chromium or Chrome on PATH')
def test_page_is_painted(tmp_path):
    page = write_diagnosis(RESULT, tmp_path)
    dom = browse(page, tmp_path / 'profile', '--dump-dom')
    assert '<script' not in dom and '<title>Diagnosis: &lt;b&gt;k&lt;/b&gt;.pth</title>' in dom
    browse(page, tmp_path / 'profile', f'--screenshot={tmp_path / "page.png"}', '--window-size=1280,3000')
    picture = np.asarray(Image.open(tmp_path / 'page.png').convert('RGB')).astype(int)
    assert count_pixels(picture, (0, 114, 178)) > 2000  # shift by depth, and a channel in training
    assert count_pixels(picture, (204, 121, 167)) > 100  # the channel on test images, dashed and dotted
