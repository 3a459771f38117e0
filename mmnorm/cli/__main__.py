"""``python -m mmnorm.cli`` is ``mmnorm``."""

import sys

from mmnorm.cli import main

if __name__ == '__main__':  # and not in processes that this one spawns
    sys.exit(main())
