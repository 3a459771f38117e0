"""torchrun, without its page of processes where a rank itself has said what was wrong: then that is printed, once.

Run as a file, because ``-m`` would import mmnorm first.
"""

import logging
import signal
import sys

TOLD, LEFT = 2, 1  # exit statuses of a rank that has left a message: of what was wrong, that other ranks are gone


def main():
    """Start the ranks that the arguments of this process ask torchrun for, and return the exit status of all."""
    from torch.distributed import DistError
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
    except DistError as error:
        reason = str(error).strip().rstrip('.')
        print(
            f'error: the machines of this run did not meet: {reason}. Each needs the same NNODES, MASTER_ADDR and PORT '
            'in its environment, and a NODE_RANK of its own; MASTER_ADDR is that of rank 0',
            file=sys.stderr,
        )
        return LEFT
    except ChildFailedError as error:
        # to lose the others is what follows from the end of one
        first = min(error.failures.values(), key=lambda failure: (_told(failure) == LEFT, failure.timestamp))
        if first.exitcode == 128 + signal.SIGINT:
            return first.exitcode
        if not _told(first):
            print(error, file=sys.stderr)
            return 1
        print(first.message['message'], file=sys.stderr)
        return first.exitcode
    return 0


def _told(failure):
    """The exit status of a rank (int) that has left a message; 0 of another."""
    return failure.exitcode if failure.exitcode in (TOLD, LEFT) and isinstance(failure.message, dict) else 0


if __name__ == '__main__':
    sys.path.pop(0)  # this folder, whose statistics.py Python's own modules would import
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before torchrun listens
        print('interrupted', file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
