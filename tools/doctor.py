#!/usr/bin/env python
"""The command `mmnorm doctor`."""

from door import enter

if __name__ == '__main__':
    enter('doctor')
