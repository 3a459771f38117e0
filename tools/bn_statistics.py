#!/usr/bin/env python
"""The command `mmnorm statistics`."""

from door import enter

if __name__ == '__main__':
    enter('statistics')
