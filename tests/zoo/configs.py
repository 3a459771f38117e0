"""Configs of the zoo, each parsed once for all tests: that takes a fifth of a second."""

import copy
import functools
from importlib.util import find_spec

import pytest
from mmengine.config import Config

_parse = functools.cache(Config.fromfile)


def config(path):
    """The config (Config) of a path, of which a test may do with its copy what it likes; skips where mmpretrain, from
    whose it inherits, is not installed."""
    try:
        return copy.deepcopy(_parse(path))
    except ModuleNotFoundError as error:
        if 'mmpretrain' not in str(error) or find_spec('mmpretrain'):
            raise
        pytest.skip(str(error))
