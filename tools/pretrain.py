#!/usr/bin/env python
"""The command `mmnorm pretrain`."""

from door import enter

if __name__ == '__main__':
    enter('pretrain')
