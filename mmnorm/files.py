"""Files that are there whole or not at all. Needs the standard library alone."""

import json
import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path):
    """Write a file under another name, and give it its own when it is whole and on the disk.

    What was there before stays until then, and for good if the block fails: then the unfinished file is removed.

    Args:
        path (str or Path): The file; its folder exists.

    Yields:
        Path: What to write and close in the block: ``NAME.partial`` in the same folder.
    """
    partial = Path(path).with_name(f'{Path(path).name}.partial')
    try:
        yield partial
        with open(partial, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path, text):
    """Write a text file at once.

    Args:
        path (str or Path): The file; its folder exists.
        text (str): Written as UTF-8.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding='utf-8')


def write_json(path, content):
    """Write a JSON file at once.

    Args:
        path (str or Path): The file; its folder exists.
        content (dict): What to write; numbers that JSON does not know, such as numpy's, become floats.
    """
    write_text(path, json.dumps(content, indent=2, default=float) + '\n')
