#!/usr/bin/env python
"""The command `mmnorm diagnose`."""

from door import enter

if __name__ == '__main__':
    enter('diagnose')
