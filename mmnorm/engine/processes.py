"""Processes of a run: they start with or without GPUs, and none outlives the one that started it."""

import ctypes
import faulthandler
import os
import signal
import sys
from datetime import timedelta
from functools import partial
from multiprocessing import resource_sharer

import torch
from torch import distributed

from mmnorm.terminal import PARENT, on_first_rank

RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_LOCAL_RANK')  # by the launchers that set them
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent():
    """Have the kernel end this process, if torchrun or a command of ours started it, and its forks with their parents.

    torchrun ends its ranks when it can; after a kill -9 it cannot, and a killed rank leaves its data loader workers,
    which hold the sockets that the other ranks wait on. Ctrl-C is answered by this process alone, and a fork says
    nothing of what it was handing over then. Does nothing outside Linux.
    """
    if sys.platform != 'linux':
        return
    parent = os.environ.pop(PARENT, None)  # so that no other process that this one starts takes it for its parent
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        end_with_parent()
    elif parent:  # not when started from a shell, which may be closed meanwhile
        end_with_parent(int(parent))
    prctl = ctypes.CDLL(None).prctl
    os.register_at_fork(after_in_child=partial(_follow_parent, prctl))


def _follow_parent(prctl):
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # else the parent's threads lose a worker that they load from; SIG_IGN would be inherited by commands
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.siginterrupt(signal.SIGINT, False)
    sys.excepthook = partial(_show_error, sys.excepthook)


def _show_error(show, kind, error, trace):
    """Show an error, unless the parent hung up on the thread that hands tensors to it: the parent knows why it did."""
    handing_over = trace is not None and trace.tb_frame.f_globals is vars(resource_sharer)
    if not (handing_over and isinstance(error, (EOFError, ConnectionError))):
        show(kind, error, trace)


def end_with_parent(parent=None):
    """Have the kernel end this process when the thread that started it ends; does nothing outside Linux.

    Args:
        parent (int or None): Id of the process that started this one, which may be dead by now. Default: whose child
            this is now.
    """
    if sys.platform != 'linux':
        return
    parent = parent or os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), signal.SIGKILL)


def start_distributed(cfg):
    """Join the process group over gloo where there is no GPU; with GPUs leave it to mmengine.

    Args:
        cfg (Config): With ``launcher``; ``env_cfg.dist_cfg.timeout`` (s) is how long ranks wait for one that does not
            come, by default torch's 30 minutes.

    Raises:
        ValueError: The launcher has not started this process.
    """
    rank = RANKS.get(cfg.launcher)
    if rank and rank not in os.environ:
        raise ValueError(
            f'--launcher {cfg.launcher}: it has not started this process, for {rank} is not in the environment; '
            '--processes N starts N processes on this machine'
        )
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        faulthandler.enable()  # gloo aborts a rank whose messages have another size than the others': show where it was
        seconds = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout', 1800)
        distributed.init_process_group('gloo', timeout=timedelta(seconds=seconds))


def leads_run(launcher):
    """Whether this process is the first, or the only one, of a run (str: ``--launcher``)."""
    return launcher == 'none' or on_first_rank()
