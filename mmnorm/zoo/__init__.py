"""The config zoo: the papers' tables as configs, with their figures, listed and checked."""

from .rows import DATA, MODES, PAPERS, TASKS, Model, Published, find_model, load_zoo

__all__ = ['DATA', 'MODES', 'PAPERS', 'TASKS', 'Model', 'Published', 'find_model', 'load_zoo']
