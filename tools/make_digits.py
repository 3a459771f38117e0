#!/usr/bin/env python
"""The command `mmnorm digits`."""

from door import enter

if __name__ == '__main__':
    enter('digits')
