#!/usr/bin/env python
"""The command `mmnorm weights`."""

from door import enter

if __name__ == '__main__':
    enter('weights')
