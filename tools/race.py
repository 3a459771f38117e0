#!/usr/bin/env python
"""The command `mmnorm race`."""

from door import enter

if __name__ == '__main__':
    enter('race')
