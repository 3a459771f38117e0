#!/usr/bin/env python
"""The command `mmnorm check-data`."""

from door import enter

if __name__ == '__main__':
    enter('check-data')
