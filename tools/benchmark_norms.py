#!/usr/bin/env python
"""The command `mmnorm benchmark`."""

from door import enter

if __name__ == '__main__':
    enter('benchmark')
