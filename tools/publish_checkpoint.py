#!/usr/bin/env python
"""The command `mmnorm publish`."""

from door import enter

if __name__ == '__main__':
    enter('publish')
