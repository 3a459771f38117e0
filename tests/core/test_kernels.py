"""The kernels of a card, tested without one, in processes whose Triton and devices are not those of other tests."""

import subprocess
import sys
from pathlib import Path

import pytest

from ..processes import ROOT, environment


@pytest.mark.parametrize(
    'name, variables', [('in_interpreter', dict(TRITON_INTERPRET='1')), ('on_fake_cards', dict(TRITON_INTERPRET='0'))]
)
def test_kernels(name, variables, tmp_path):
    pytest.importorskip('triton')
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', Path(__file__).with_name(f'{name}.py')],
        cwd=ROOT,
        env=environment() | variables | dict(TRITON_CACHE_DIR=str(tmp_path)),
        timeout=1800,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    assert ' passed' in done.stdout
