#!/usr/bin/env python
"""The command `mmnorm test`."""

from door import enter

if __name__ == '__main__':
    enter('test')
