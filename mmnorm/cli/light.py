"""Modules of mmnorm that arguments and messages need, without ``import mmnorm``, which takes seconds and torch."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]


def light(name):
    """Return a module that needs no torch and no host, and imports nothing else of mmnorm.

    Args:
        name (str): Behind ``mmnorm.``, as ``'zoo.rows'``.
    """
    full = f'mmnorm.{name}'
    if full not in sys.modules:
        spec = spec_from_file_location(full, HOME / f'{name.replace(".", "/")}.py')
        sys.modules[full] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]
