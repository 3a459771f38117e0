"""The page in a real browser, without a network."""

import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from .conftest import COLORS

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
FLAGS = (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-sync',
    '--disable-background-networking',
    '--disable-component-update',
    '--hide-scrollbars',
    '--proxy-server=127.0.0.1:9',
    '--host-resolver-rules=MAP * ~NOTFOUND',
)

pytestmark = pytest.mark.skipif(BROWSER is None, reason='no Chromium or Chrome on PATH')


def browse(page, profile, *flags):
    """Open a page and return what the browser prints."""
    done = subprocess.run(
        [BROWSER, *FLAGS, *flags, f'--user-data-dir={profile}', page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def count_pixels(picture, color):
    """Count the pixels of about a color."""
    return int((np.abs(picture - np.array(color)).max(axis=2) < 12).sum())


def test_page_is_shown(two_runs, tmp_path):
    dom = browse(two_runs, tmp_path / 'profile', '--dump-dom')
    assert '<title>Report: first, b&lt;b&gt;&amp;"</title>' in dom  # the scripts in config and class names did not run
    assert '<script' not in dom
    assert dom.count('class="difference"') == 2 * 6
    assert '&lt;script&gt;document.title="owned"&lt;/script&gt;' in dom


def test_plots_and_pictures_are_painted(two_runs, tmp_path):
    screenshot = tmp_path / 'page.png'
    browse(two_runs, tmp_path / 'profile', f'--screenshot={screenshot}', '--window-size=1280,7000')
    picture = np.asarray(Image.open(screenshot).convert('RGB')).astype(int)
    assert count_pixels(picture, (0, 114, 178)) > 2000  # the first run's curves
    assert count_pixels(picture, (213, 94, 0)) > 2000  # the second run's
    for color in COLORS:  # the objects of the test images; yellow, red and magenta are nowhere else on the page
        assert count_pixels(picture, color) > 500


def test_colors_follow_the_reader_and_paper_is_white(two_runs, tmp_path):
    dark = tmp_path / 'dark.png'
    browse(
        two_runs,
        tmp_path / 'p',
        f'--screenshot={dark}',
        '--window-size=1280,5000',
        '--blink-settings=preferredColorScheme=0',
    )
    picture = np.asarray(Image.open(dark).convert('RGB')).astype(int)
    assert count_pixels(picture, (21, 24, 28)) > 0.5 * picture.shape[0] * picture.shape[1]
    assert count_pixels(picture, (228, 231, 235)) > 2000  # the text
    assert count_pixels(picture, (255, 255, 255)) < 0.01 * picture.shape[0] * picture.shape[1]  # no plot on white
