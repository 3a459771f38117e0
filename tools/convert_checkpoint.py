#!/usr/bin/env python
"""The command `mmnorm convert`."""

from door import enter

if __name__ == '__main__':
    enter('convert')
