"""Configs of the zoo, each parsed once for all tests: that takes a fifth of a second."""

import copy
import functools

from mmengine.config import Config

_parse = functools.cache(Config.fromfile)


def config(path):
    """The config (Config) of a path, of which a test may do with its copy what it likes."""
    return copy.deepcopy(_parse(path))
