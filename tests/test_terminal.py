"""What is said to a user: progress of long work, and commands that work where the user is."""

import ast
import re
import sys
import time
from pathlib import Path

import pytest

from mmnorm import terminal
from mmnorm.cli import COMMANDS

from .conftest import ROOT


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(terminal, 'INTERVAL', 0.05)


def slow(number):
    for item in range(number):
        time.sleep(0.12)
        yield item


def test_progress_is_in_lines_where_there_is_no_terminal(capsys):
    assert list(terminal.progress(slow(3), 'evaluating', 3)) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == 'evaluating: 0 of 3'  # also while the first item is waited for
    assert lines[-1] == 'evaluating: 2 of 3, 0:00:00 left'
    assert list(terminal.progress([], 'nothing')) == []


def test_progress_ends_with_its_loop(capsys):
    for _ in terminal.progress(slow(3), 'broken off', 3):
        break
    with pytest.raises(ValueError, match='fails'), terminal.working('failing'):
        raise ValueError('fails')
    time.sleep(0.1)
    told = capsys.readouterr().err
    time.sleep(0.1)
    assert capsys.readouterr().err == '' and 'failing' not in told


def test_long_work_without_a_loop(capsys):
    with terminal.working('converting'):
        time.sleep(0.12)
    assert capsys.readouterr().err.splitlines()[0] == 'converting: 0:00:00 so far'


def test_other_ranks_are_silent(capsys, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    with terminal.working('converting'):
        assert list(terminal.progress(slow(2), 'evaluating', 2)) == [0, 1]
    assert capsys.readouterr().err == ''


def test_a_terminal_has_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    assert list(terminal.progress(slow(2), 'evaluating', 2)) == [0, 1]
    assert ' of 2' not in capsys.readouterr().err


def test_advice_names_a_command_that_works(monkeypatch, tmp_path):
    program = str(Path(sys.executable).with_name('mmnorm'))
    monkeypatch.setattr(terminal.shutil, 'which', lambda name: program)
    assert terminal.command('train') == 'mmnorm train'
    monkeypatch.chdir(ROOT)
    for found in (None, '/of/another/environment/bin/mmnorm'):
        monkeypatch.setattr(terminal.shutil, 'which', lambda name, found=found: found)
        assert terminal.command('statistics') == 'python tools/bn_statistics.py'
        doors = [terminal.command(name).split()[1] for name in COMMANDS if name != 'norms']
        assert all(Path(door).is_file() for door in doors)
        assert terminal.command('norms') == 'python -m mmnorm.cli norms'
    monkeypatch.setattr(terminal, 'TOOLS', tmp_path)  # an installed wheel has none
    assert terminal.command('train') == 'python -m mmnorm.cli train'
    assert Path(terminal.config('metafile.yml')).is_file()


def strings_of(path):
    """The strings of a module (its templates: of a page), without docstrings and what ``__doc__`` shows."""
    text = path.read_text(encoding='utf-8')
    if path.suffix != '.py':
        return [text]
    nodes = list(ast.walk(ast.parse(text)))
    alone = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    constants = (node for node in nodes if isinstance(node, ast.Constant) and id(node) not in alone)
    return [node.value for node in constants if isinstance(node.value, str)]


def test_no_text_names_a_file_that_a_wheel_has_not():
    """But for the pages of configs, which are files of a checkout."""
    for path in [*(ROOT / 'mmnorm').glob('**/*.py'), *(ROOT / 'mmnorm').glob('**/*.j2')]:
        if '.mim' not in path.parts and path.name != 'pages.py':
            assert not [text for text in strings_of(path) if re.search(r'tools/|(?<!\.mim/)configs/_base_', text)], path
