#!/usr/bin/env python
"""The command `mmnorm zoo`."""

from door import enter

if __name__ == '__main__':
    enter('zoo')
