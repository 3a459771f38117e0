#!/usr/bin/env python
"""The command `mmnorm train`."""

from door import enter

if __name__ == '__main__':
    enter('train')
