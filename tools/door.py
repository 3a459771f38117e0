"""The files of this folder are doors: `python tools/train.py` is `mmnorm train`, of this checkout if it is one."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def enter(command):
    """Run a command of mmnorm with the arguments of this process, and end."""
    if (ROOT / 'mmnorm').is_dir():  # run from a checkout without installing, and so do the processes it starts
        sys.path.insert(0, str(ROOT))
        os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    from mmnorm_door import enter

    enter(command)
