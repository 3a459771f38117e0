"""The page of a race: what it says of norms that seeds tell apart or do not, and of trainings that failed."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from mmnorm.report import write_race

from .conftest import coco_line, train_line, write_session
from .test_report_browser import BROWSER, browse, count_pixels

ABOUT = dict(
    config='c<b>.py',
    command='mmnorm race c.py',
    date='2026-01-01',
    device='a CPU',
    versions=dict(torch='2'),
    settings={},
)


@pytest.fixture
def race(tmp_path):
    """A function that makes a race of AP by (norm, batch size), one for each seed; None for a training that failed."""

    def make(reached):
        starts = []
        for (norm, size), values in reached.items():
            for seed, ap in enumerate(values):
                name = f'{norm.partition(":")[0]}_{size}_{seed}'
                starts.append(dict(norm=norm, batch_size=size, seed=seed, name=name, failure=''))
                if ap is None:
                    starts[-1]['failure'] = 'error: <i>NaN</i>'
                    continue
                finish(tmp_path / name, ap, seconds=0.1 * size * (2 if norm == 'SN' else 1))
        return starts

    return make


def finish(work_dir, ap, seconds):
    """Write what a training that came to its end leaves."""
    lines = [train_line(iteration, time=seconds) for iteration in (10, 20)]
    write_session(work_dir, '20250101_120000', [*lines, coco_line(1, ap / 100)])
    record = dict(finished='2025-01-01T12:02:00', iterations=20, train_seconds=9.0, peak_memory_mb=1500.4)
    (work_dir / 'run.json').write_text(json.dumps(record))


def test_norms_are_told_apart_only_beyond_their_seeds(race, tmp_path):
    starts = race(
        {
            ('BN', 2): (20.0, 24.0, 22.0),
            ('SN', 2): (30.0, 31.0, 32.0),
            ('GN', 2): (29.0, 31.0, 33.0),
            ('BN', 8): (40.0, 41.0, 42.0),
            ('SN', 8): (20.0, 21.0, 22.0),
        }
    )
    page, sentences = write_race(ABOUT, starts, tmp_path)
    assert sentences == [
        '2 images a step: SN has the highest Box AP, 31.0 ± 1.0. These seeds do not tell it apart from GN.',
        '8 images a step: BN has the highest Box AP, 41.0 ± 1.0, more than these seeds leave open.',
    ]
    text = page.read_text().replace('<wbr>', '')
    assert all(sentence in text for sentence in sentences)
    assert '<h1>c&lt;b&gt;.py</h1>' in text and '15 finished' in text
    assert '<tr><th>SN</th><td><strong>31.0 ± 1.0</strong></td><td>21.0 ± 1.0</td></tr>' in text
    assert '<tr><th>GN</th><td><strong>31.0 ± 2.0</strong></td><td>–</td></tr>' in text  # as high as SN, and no 8
    assert text.count('alt="Plot: ') == 3  # boxes, masks, time
    assert '<tr><th>SN</th><td>2</td><td>400</td>' in text and '<td>2.00</td><td>1500</td>' in text
    rows = list(csv.DictReader(page.with_suffix('.csv').open()))
    assert len(rows) == 15 and rows[0]['AP^bbox'] == '20.0' and rows[0]['seconds'] == '0.2'
    written = json.loads(page.with_suffix('.json').read_text())
    assert [start['norm'] for start in written['starts']] == [start['norm'] for start in starts]


def test_one_seed_says_nothing_of_noise(race, tmp_path):
    _, sentences = write_race(ABOUT, race({('BN', 2): (20.0,), ('SN', 2): (31.0,)}), tmp_path)
    assert sentences == [
        '2 images a step: SN has the highest Box AP, 31.0, before BN with 20.0. What another seed would change is not '
        'known.'
    ]


def test_where_nothing_was_learned_nothing_is_compared(race, tmp_path):
    _, sentences = write_race(ABOUT, race({('BN', 2): (0.2, 0.1), ('SN', 2): (0.4, 0.0)}), tmp_path)
    assert len(sentences) == 1 and 'nothing to compare' in sentences[0] and 'highest' not in sentences[0]


def test_what_failed_and_what_is_not_there_yet_is_said(race, tmp_path):
    starts = race({('BN', 2): (20.0, 24.0), ('GN:num_groups=7', 2): (None,)})
    starts.append(dict(norm='SN', batch_size=2, seed=0, name='SN_2_0', failure=''))
    page, sentences = write_race(ABOUT, starts, tmp_path)
    text = page.read_text().replace('<wbr>', '')
    assert sentences == [] and 'GN_2_0: error: &lt;i&gt;NaN&lt;/i&gt;' in text
    assert '<td>failed</td>' in text and '1 not trained yet' in text


def test_before_the_first_training_there_is_a_page(race, tmp_path):
    starts = [dict(norm='SN', batch_size=2, seed=0, name='SN_2_0', failure='')]
    page, sentences = write_race(ABOUT, starts, tmp_path)
    assert sentences == [] and '1 not trained yet' in page.read_text()


@pytest.mark.skipif(BROWSER is None, reason='no Chromium or Chrome on PATH')
def test_a_browser_paints_its_plots(race, tmp_path):
    page, _ = write_race(ABOUT, race({('BN', 2): (20.0, 24.0), ('SN', 2): (30.0, 31.0), ('BN', 8): (40.0,)}), tmp_path)
    browse(page, tmp_path / 'profile', f'--screenshot={tmp_path / "page.png"}', '--window-size=1280,2000')
    picture = np.asarray(Image.open(tmp_path / 'page.png').convert('RGB')).astype(int)
    assert (
        count_pixels(picture, (0, 114, 178)) > 500 and count_pixels(picture, (213, 94, 0)) > 50
    )  # BN's lines, SN's dots
