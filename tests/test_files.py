"""A file that is written is whole or as it was, whatever happens meanwhile."""

import json
import multiprocessing
import os
import secrets
import signal
import stat

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
        assert partial.parent == tmp_path and partial.name.startswith('a.pth.') and partial.suffix == '.partial'
        partial.write_bytes(b'half')
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_unfinished_files_have_names_that_nobody_can_plant(tmp_path, monkeypatch):
    target, planted = tmp_path / 'a.html', tmp_path / 'a.html.partial'
    (tmp_path / 'victim').write_text('precious')
    planted.symlink_to('victim')
    names = iter(['0' * 16, '1' * 16])
    (tmp_path / f'a.html.{"0" * 16}.partial').symlink_to('victim')  # guessed, even so
    monkeypatch.setattr(secrets, 'token_hex', lambda size: next(names))
    with pytest.raises(FileExistsError):
        files.write_text(target, 'new')
    files.write_text(target, 'new')
    assert target.read_text() == 'new' and (tmp_path / 'victim').read_text() == 'precious'
    assert planted.is_symlink()


def test_files_have_the_permissions_that_the_user_gives_to_new_ones(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / 'a', '')
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / 'a').stat().st_mode) == 0o640


def killed_while_writing(path):
    with files.replacing(path) as partial:
        partial.write_bytes(b'half')
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    process = multiprocessing.get_context('fork').Process(target=killed_while_writing, args=(tmp_path / 'a',))
    process.start()
    process.join()
    (left,) = tmp_path.iterdir()
    others = [tmp_path / 'a.txt.partial', tmp_path / f'b.{"0" * 16}.partial']  # not of ours, or of another file
    for other in others:
        other.touch()
    with files.replacing(tmp_path / 'a') as first:
        assert not left.exists()
        files.write_text(tmp_path / 'a', 'second')
        first.write_text('first')
    assert (tmp_path / 'a').read_text() == 'first'
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / 'a', *others])


def test_content_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda file: done.append('fsync') or fsync(file))
    monkeypatch.setattr(os, 'replace', lambda *paths: done.append('replace') or replace(*paths))
    files.write_json(str(tmp_path / 'a.json'), dict(value=np.float32(0.5)))
    assert done == ['fsync', 'replace'] and json.loads((tmp_path / 'a.json').read_text()) == dict(value=0.5)
