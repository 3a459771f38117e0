"""torchrun, without its page of processes where a rank itself has said what was wrong: then that is printed, once.

Run as a file, because ``-m`` would import mmnorm first.
"""

import logging
import signal
import sys

TOLD = 2  # a rank's exit status, when it has left a message


def main():
    """Start the ranks that the arguments of this process ask torchrun for, and return the exit status of all."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    for name in list(logging.root.manager.loggerDict):
        if name.startswith('torch.distributed.elastic'):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what they log is below, or on the page
    try:
        torchrun()
    except SignalException as signaled:
        return 128 + signaled.sigval
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode == 128 + signal.SIGINT:
            return first.exitcode
        if first.exitcode != TOLD or not isinstance(first.message, dict):
            print(error, file=sys.stderr)
            return 1
        print(first.message['message'], file=sys.stderr)
        return TOLD
    return 0


if __name__ == '__main__':
    sys.path.pop(0)  # this folder, whose statistics.py Python's own modules would import
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before torchrun listens
        print('interrupted', file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
