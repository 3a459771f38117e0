"""A file that is written is whole or as it was, whatever happens meanwhile."""

import errno
import json
import multiprocessing
import os
import resource
import secrets
import signal
import stat
from unittest import mock

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


FULL = 'the disk is full (2.5 MB are needed, 7.0 kB are free)'


@pytest.mark.parametrize(
    'number, reason',
    [
        (errno.ENOSPC, FULL),
        (errno.EDQUOT, 'the quota of disk space is used up (2.5 MB are needed)'),
        (errno.EFBIG, 'it would be larger than a file may be (ulimit -f, or the file system) (2.5 MB are needed)'),
        (errno.EROFS, 'the file system is read-only'),
        (errno.EACCES, 'you may not write there'),
    ],
)
@pytest.mark.parametrize('step', ['open', 'write_bytes', 'fsync', 'replace'])
def test_what_cannot_be_written_is_told_with_its_reason_and_what_is_safe(tmp_path, monkeypatch, number, reason, step):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    new, old = tmp_path / 'new', tmp_path / 'old'
    old.write_text('old')
    monkeypatch.setattr(files, 'free_space', lambda folder: 7_000)
    monkeypatch.setattr(files.Path if step == 'write_bytes' else os, step, fail)
    for path, safe in ((new, 'Nothing unfinished is left'), (old, 'What was there before is as it was')):
        with pytest.raises(files.WriteError) as told:
            files.write_text(path, 'x' * 2_500_000)
        assert str(told.value) == f'{path} could not be written: {reason}. {safe}'
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [old] and old.read_text() == 'old'


def test_a_file_that_may_not_grow_so_far(tmp_path):
    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        with pytest.raises(files.WriteError, match='a could not be written: it would be larger than a file may be'):
            files.write_text(tmp_path / 'a', 'x' * 2000)

    process = multiprocessing.get_context('fork').Process(target=write)
    process.start()
    process.join()
    assert process.exitcode == 0 and not list(tmp_path.iterdir())


def test_files_that_belong_together_are_all_written_or_none(tmp_path, monkeypatch):
    first, second = tmp_path / 'a', tmp_path / 'b'
    first.write_text('old')
    fsync, synced = os.fsync, []

    def full(file):
        synced.append(file)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, '')
        fsync(file)

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(files.WriteError):
        files.write_together({first: 'new', second: b'new'})
    assert first.read_text() == 'old'
    files.write_together({first: 'new', second: b'new'})
    assert first.read_text() == second.read_text() == 'new'


def test_errors_of_reading_are_not_those_of_writing(tmp_path):
    for write in (files.replacing, files.making_folder):
        for read in ('/elsewhere/b', str(tmp_path / 'b')):
            with pytest.raises(PermissionError), write(tmp_path / 'a'):
                raise PermissionError(errno.EACCES, '', read)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        files.write_text(tmp_path / 'gone/a', '')


def test_folders_that_cannot_be_written_to_are_told_before_anything_is_computed(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    files.check_writable(tmp_path / 'new/newer')
    assert not (tmp_path / 'new').exists()
    with pytest.raises(files.WriteError, match='file is a file, not a folder$'):
        files.check_writable(tmp_path / 'file')
    with pytest.raises(files.WriteError, match='new cannot be made: .*file is a file, not a folder$'):
        files.check_writable(tmp_path / 'file/new')
    monkeypatch.setattr(os, 'access', lambda place, mode: False)
    with pytest.raises(files.WriteError, match=rf'new cannot be written to: you may not write there \({tmp_path}\)'):
        files.check_writable(tmp_path / 'new')
    monkeypatch.setattr(os, 'statvfs', lambda place: mock.Mock(f_flag=os.ST_RDONLY))
    with pytest.raises(files.WriteError, match='the file system is read-only. Choose another folder'):
        files.check_writable(tmp_path)
