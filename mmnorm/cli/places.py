"""Where in a config something stands. Needs the standard library alone."""

import sys


def config_of(frames):
    """The config (Config) that a program works with, by the frames of its stack; None if it has none."""
    config = getattr(sys.modules.get('mmengine.config'), 'Config', ())
    return next((value for frame in frames for value in frame.f_locals.values() if isinstance(value, config)), None)


def find(part, value, place=''):
    """Where (str) in a part of a config a value is; None if nowhere."""
    items = enumerate(part) if isinstance(part, (list, tuple)) else part.items() if hasattr(part, 'items') else ()
    items = [(f'{place}.{key}'.strip('.'), inner) for key, inner in items]
    for key, inner in items:
        if isinstance(inner, (dict, list)) and repr(inner) == repr(value):
            return key
    return next(filter(None, (find(inner, value, key) for key, inner in items)), None)


def types(part, place=''):
    """Names under ``type`` in a part of a config, with where they are; its own first."""
    if isinstance(part, (list, tuple)):
        part = dict(enumerate(part))
    if isinstance(part, dict):
        if isinstance(part.get('type'), str):
            yield place, part['type']
        for key, inner in part.items():
            yield from types(inner, f'{place}.{key}'.strip('.'))
