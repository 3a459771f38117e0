#!/usr/bin/env python
"""The command `mmnorm report`."""

from door import enter

if __name__ == '__main__':
    enter('report')
