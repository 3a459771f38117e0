"""The way to mmnorm's commands: `mmnorm train`, `python -m mmnorm_door train`, and tools/train.py.

It is beside the package, not in it: ``import mmnorm`` takes seconds and torch, and neither --help nor Ctrl-C can wait.
"""

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path


def main():
    """Run the command that the arguments of this process name, and end."""
    _end(lambda cli: cli.main())


def enter(command):
    """Run a command (str) with the arguments of this process, and end."""
    _end(lambda cli: cli.run_command(command))


def _end(run):
    try:
        sys.exit(run(_import_cli()))
    except KeyboardInterrupt:  # before a command could answer it
        print('interrupted', file=sys.stderr)
        sys.exit(130)


def _import_cli():
    folder = Path(find_spec('mmnorm').origin).with_name('cli')
    spec = spec_from_file_location('mmnorm.cli', folder / '__init__.py', submodule_search_locations=[str(folder)])
    sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
    return sys.modules[spec.name]


if __name__ == '__main__':  # and not in processes that this one spawns
    main()
