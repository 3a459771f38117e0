"""Files that are there whole or not at all. Needs the standard library alone."""

import fcntl
import glob
import json
import os
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path):
    """Write a file under another name, and give it its own when it is whole and on the disk.

    What was there before stays until then, and for good if the block fails: then the unfinished file is removed. One
    that a killed process left is removed when the same file is written again.

    Args:
        path (str or Path): The file; its folder exists.

    Yields:
        Path: What to write and close in the block: an empty file in the same folder, ``NAME.RANDOM.partial``.
    """
    path = Path(path)
    _remove_abandoned(path)
    partial, file = _create_partial(path)
    try:
        yield partial
        os.fsync(file)  # of the same file, whoever has written it
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
        os.close(file)


def _create_partial(path):
    """Create a file that nobody can have planted; returns its path and its descriptor, which holds a lock on it."""
    while True:
        partial = path.with_name(f'{path.name}.{secrets.token_hex(8)}.partial')
        file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:
            return partial, file
        os.close(file)  # taken for abandoned before it was locked


def _remove_abandoned(path):
    """Remove unfinished files of a path whose writers, and with them their locks, are gone."""
    for left in path.parent.glob(f'{glob.escape(path.name)}.{"[0-9a-f]" * 16}.partial'):
        with suppress(OSError):  # still locked, or not ours to open
            file = os.open(left, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
            finally:
                os.close(file)


def write_bytes(path, content):
    """Write a file at once.

    Args:
        path (str or Path): The file; its folder exists.
        content (bytes): What to write.
    """
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path, text):
    """Write a text file at once.

    Args:
        path (str or Path): The file; its folder exists.
        text (str): Written as UTF-8.
    """
    write_bytes(path, text.encode())


def write_json(path, content):
    """Write a JSON file at once.

    Args:
        path (str or Path): The file; its folder exists.
        content (dict): What to write; numbers that JSON does not know, such as numpy's, become floats.
    """
    write_text(path, json.dumps(content, indent=2, default=float) + '\n')
