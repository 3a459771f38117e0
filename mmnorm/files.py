"""Files that are there whole or not at all. Needs the standard library alone."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_RANDOM = '[0-9a-f]' * 16  # as a pattern
_NO_ROOM = {
    errno.ENOSPC: 'the disk is full',
    errno.EDQUOT: 'the quota of disk space is used up',
    errno.EFBIG: 'it would be larger than a file may be (ulimit -f, or the file system)',
}
_NO_ACCESS = {
    errno.EROFS: 'the file system is read-only',
    errno.EACCES: 'you may not write there',
    errno.EPERM: 'you may not write there',
}


class WriteError(OSError):
    """A file cannot be written; its text tells the user which, why, how much room is needed and what is safe."""


@contextmanager
def replacing(path, size=None):
    """Write a file under another name, and give it its own when it is whole and on the disk.

    What was there before stays until then, and for good if the block fails: then the unfinished file is removed. One
    that a killed process left is removed when the same file is written again.

    Args:
        path (str or Path): The file; its folder exists.
        size (int, callable or None): Its size in bytes, or what returns it, to be told where there is no room for it.

    Yields:
        Path: What to write and close in the block: an empty file in the same folder, ``NAME.RANDOM.partial``.

    Raises:
        WriteError: There is no room for the file, or no access to its folder.
    """
    path = Path(path)
    with _telling(path, size):
        for left in path.parent.glob(f'{glob.escape(path.name)}.{_RANDOM}.partial'):
            _if_abandoned(left, left.unlink)
        partial = path.with_name(f'{path.name}.{secrets.token_hex(8)}.partial')
        file = _create_locked(partial)
        try:
            yield partial
            os.fsync(file)  # of the same file, whoever has written it
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
            os.close(file)


@contextmanager
def making_folder(path):
    """Make a folder under another name, beside what is there before, which :func:`take_place` then replaces by it.

    What a killed process left is removed first, or, if it was killed while a folder was replaced, that is finished.

    Args:
        path (Path): The folder; the one above it is made if it is not there.

    Yields:
        Path: An empty folder to write to, which is removed at the end unless it has taken the place of ``path``.

    Raises:
        WriteError: There is no room for what is written, or no access.
    """
    check_writable(path.parent)
    if path.is_symlink() and not path.exists():
        raise WriteError(f'{path} is a link to {os.readlink(path)}, where no folder is')
    with _telling(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for lock in path.parent.glob(f'.{glob.escape(path.name)}-{_RANDOM}/lock'):
            _if_abandoned(lock, lambda lock=lock: _finish(lock.parent, path))
        workspace = path.with_name(f'.{path.name}-{secrets.token_hex(8)}')
        workspace.mkdir()
        file = _create_locked(workspace / 'lock')
        try:
            (workspace / 'new').mkdir()
            yield workspace / 'new'
        finally:
            _finish(workspace, path)
            os.close(file)


def take_place(new, path):
    """Put the folder that :func:`making_folder` gave in the place of the one that it is for."""
    if path.exists():
        os.replace(path, new.with_name('old'))
    os.replace(new, path)


def _finish(workspace, path):
    if (workspace / 'old').exists() and not path.exists():  # all was whole, and the second renaming did not come
        os.replace(workspace / 'new', path)
    shutil.rmtree(workspace)


def _create_locked(path):
    """Create a file that nobody can have planted; returns a descriptor, which holds a lock on it until it is closed."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:
            return file
        os.close(file)  # removed as abandoned before it was locked


def _if_abandoned(path, do):
    """Do something if the process that created and locked a file is gone, and no other does it at the same time."""
    with suppress(OSError):  # still locked, on a file system without locks, or not ours to open
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            do()
        finally:
            os.close(file)


@contextmanager
def _telling(path, size=None):
    """Raise a WriteError for a path where it cannot be written."""
    try:
        yield
    except OSError as error:
        reason = (_NO_ROOM | _NO_ACCESS).get(error.errno)
        own = (str(path), str(path.with_name(f'.{path.name}-')))
        of_others = error.filename and not str(error.filename).startswith(own)
        if reason is None or of_others:
            raise
        safe = 'What was there before is as it was' if path.exists() else 'Nothing unfinished is left'
        raise WriteError(f'{path} could not be written: {reason}{_room(path, size, error)}. {safe}') from error


def as_write_error(error):
    """The WriteError that an OSError is where code of others finds no room, which names no file; else the same."""
    reason = (_NO_ROOM | {errno.EROFS: _NO_ACCESS[errno.EROFS]}).get(getattr(error, 'errno', None))
    return WriteError(f'{error.filename or "a file"} could not be written: {reason}') if reason else error


def check_writable(folder):
    """Raise a WriteError if files cannot be made in a folder, which need not exist yet; nothing is written."""
    folder = Path(folder)
    place = _existing(folder)
    if not place.is_dir():
        raise WriteError(
            f'{folder} is a file, not a folder'
            if place == folder.absolute()
            else f'{folder} cannot be made: {place} is a file, not a folder'
        )
    if not os.access(place, os.W_OK | os.X_OK):
        read_only = os.statvfs(place).f_flag & os.ST_RDONLY
        where = '' if place == folder.absolute() else f' ({place})'
        raise WriteError(
            f'{folder} cannot be written to: {_NO_ACCESS[errno.EROFS if read_only else errno.EACCES]}{where}. '
            'Choose another folder'
        )


def check_file(path, what):
    """Raise FileNotFoundError, with what there is instead, unless a path is that of a file, directly or by a link.

    Args:
        path (str or Path): As the user gave it.
        what (str): What the file is to be, for the message.
    """
    if os.path.isfile(path):
        return
    if not str(path):
        reason = 'has no name'
    elif os.path.isdir(path):
        reason = 'is a folder: give the file in it'
    elif os.path.exists(path):
        reason = 'is no file, but a pipe or a device'
    elif os.path.islink(path):
        reason = f'is a link to {os.readlink(path)}, where no file is'
    else:
        quoted = str(path).startswith('~') or '$' in str(path)
        reason = 'does not exist' + ' (~ and $NAME are known to the shell, outside of quotes)' * quoted
    raise FileNotFoundError(' '.join(filter(None, [what, str(path), reason])))


def free_space(folder):
    """Bytes (int) that a user can write to a folder, which need not exist yet; quotas of a user are not known."""
    return shutil.disk_usage(_existing(Path(folder))).free


def describe_size(size):
    """A size in bytes as text."""
    scales = dict(kB=1e3, MB=1e6, GB=1e9)
    unit = next((unit for unit, scale in scales.items() if size < 1000 * scale), 'GB')
    return f'{size / scales[unit]:,.1f} {unit}'


def _existing(folder):
    """A folder, or the nearest one above it that exists (absolute Path)."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if os.path.lexists(place))


def _room(path, size, error):
    """How much room is needed and how much there is, where that is known and matters."""
    if error.errno not in _NO_ROOM:
        return ''
    size = size() if callable(size) else size
    known = [f'{describe_size(size)} are needed'] if size else []
    if error.errno == errno.ENOSPC:
        known.append(f'{describe_size(free_space(path.parent))} are free')
    return f' ({", ".join(known)})' if known else ''


def write_together(contents):
    """Write files that belong together: none gets its name before all are whole and on the disk.

    Args:
        contents (dict[Path, bytes or str]): By file, text as UTF-8; the folders exist. They get their names last to
            first, so that the first, if it is there, has the others beside it.

    Raises:
        WriteError: There is no room for a file, or no access to its folder; then all are as they were.
    """
    with ExitStack() as stack:
        for path, content in contents.items():
            content = content.encode() if isinstance(content, str) else content
            stack.enter_context(replacing(path, len(content))).write_bytes(content)


def checksum(path):
    """The SHA-256 of a file, as hexadecimal text."""
    found = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


def write_bytes(path, content):
    """Write a file at once.

    Args:
        path (str or Path): The file; its folder exists.
        content (bytes): What to write.
    """
    write_together({Path(path): content})


def write_text(path, text):
    """Write a text file at once.

    Args:
        path (str or Path): The file; its folder exists.
        text (str): Written as UTF-8.
    """
    write_together({Path(path): text})


def read_json(path):
    """Read a JSON file of UTF-8, with or without a byte order mark.

    Args:
        path (str or Path): The file.

    Returns:
        object: What it holds.

    Raises:
        ValueError: It is not such a file; without its name.
    """
    try:
        return json.loads(Path(path).read_text(encoding='utf-8-sig'))
    except RecursionError:
        raise ValueError('its JSON is nested too deeply') from None


def write_json(path, content):
    """Write a JSON file at once.

    Args:
        path (str or Path): The file; its folder exists.
        content (dict): What to write; see :func:`as_json`.
    """
    write_text(path, as_json(content))


def as_json(content):
    """A dict as the text of a JSON file; numbers that JSON does not know, such as numpy's, become floats."""
    return json.dumps(content, indent=2, default=float) + '\n'
