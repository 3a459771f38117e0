"""Texts that come from files (names of runs, classes, metrics and layers, notes), made fit for where they go.

The pages escape HTML by themselves, and plots take :func:`visible` and :func:`one_line` as they are saved.
"""

import html
import re

_JOINERS = '\u200c\u200d'  # of scripts and emoji
_FORMULA = '=+-@＝＋－＠'  # with which spreadsheets begin what they compute
_MARKUP = re.compile(r'[\\`*\[\]|~#@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.', re.IGNORECASE)


def visible(text):
    """A text in which nothing is hidden: no control characters, marks that turn its direction, or half characters."""
    return ''.join(
        letter if letter.isprintable() or letter in '\n\t' + _JOINERS else ' ' if letter.isspace() else '\ufffd'
        for letter in str(text)
    )


def one_line(text, length=None):
    """A visible text on one line; of at most ``length`` characters, if that is given."""
    text = visible(text).replace('\n', ' ').replace('\t', ' ')
    return text if length is None or len(text) <= length else f'{text[: length - 1]}…'


def in_markdown(text):
    """A text for Markdown and its tables, of which nothing becomes HTML, a link or other markup."""
    return _MARKUP.sub(r'\\\g<0>', html.escape(one_line(text), quote=False))


def in_csv(value):
    """A cell of a table: what a spreadsheet would compute is a text there; numbers stay as they are."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.lstrip().startswith(tuple(_FORMULA)) else text
    return text
