"""A file that is written is whole or as it was, whatever happens meanwhile."""

import json
import os

import numpy as np
import pytest

from mmnorm import files


def test_old_file_stays_whole_when_writing_fails(tmp_path):
    page = tmp_path / 'report.html'
    files.write_text(page, 'old')
    with pytest.raises(UnicodeEncodeError):
        files.write_text(page, 'new' * 10000 + '\ud800')  # half of a surrogate pair has no encoding
    assert page.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [page]


def test_interruption_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / 'a.pth') as partial:
        assert partial == tmp_path / 'a.pth.partial'
        partial.write_bytes(b'half')
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_content_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda file: done.append('fsync') or fsync(file))
    monkeypatch.setattr(os, 'replace', lambda *paths: done.append('replace') or replace(*paths))
    files.write_json(str(tmp_path / 'a.json'), dict(value=np.float32(0.5)))
    assert done == ['fsync', 'replace'] and json.loads((tmp_path / 'a.json').read_text()) == dict(value=0.5)
