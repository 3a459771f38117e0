"""The files of this folder are doors: `python tools/train.py` is `mmnorm train`, of this checkout if it is one."""

import os
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def enter(command):
    """Run a command of mmnorm with the arguments of this process, and end."""
    if (ROOT / 'mmnorm').is_dir():  # run from a checkout without installing, and so do the processes it starts
        sys.path.insert(0, str(ROOT))
        os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    # without `import mmnorm`, which takes seconds and torch: not every command needs it, nor does --help
    folder = Path(find_spec('mmnorm').origin).with_name('cli')
    spec = spec_from_file_location('mmnorm.cli', folder / '__init__.py', submodule_search_locations=[str(folder)])
    sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
    sys.exit(sys.modules[spec.name].run_command(command))
