"""mmengine's Runner, with checkpoints that survive interruption."""
import os
import pickle
import re
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import broadcast_object_list, get_rank, master_only
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner as _Runner


class Runner(_Runner):
    """mmengine's Runner that writes checkpoints atomically and resumes from the newest one that loads.

    A checkpoint is written to a temporary file, flushed to the disk and renamed: under its name it is either whole or
    absent. ``resume=True`` without ``load_from`` tries the checkpoints of the work directory, newest first, and says
    which it passed over and why.
    """

    @master_only
    def save_checkpoint(self, out_dir, filename, *args, **kwargs):
        if '://' in str(out_dir):  # an object store, whose uploads are atomic
            return super().save_checkpoint(out_dir, filename, *args, **kwargs)
        partial = Path(out_dir, f'{filename}.partial')
        super().save_checkpoint(out_dir, partial.name, *args, **kwargs)
        with open(partial, 'rb') as file:
            os.fsync(file.fileno())
        partial.replace(partial.with_suffix(''))

    def load_checkpoint(self, *args, **kwargs):
        with log_history_allowed():
            return super().load_checkpoint(*args, **kwargs)

    def load_or_resume(self):
        if self._resume and self._load_from is None and not self._has_loaded:
            newest = [newest_checkpoint(self.work_dir, self.logger.warning) if get_rank() == 0 else None]
            broadcast_object_list(newest)
            self._load_from = newest[0]
            if self._load_from is None:
                self.logger.warning(f'{self.work_dir} has no checkpoint that loads: training starts from the beginning')
                self._resume = False
        super().load_or_resume()


def newest_checkpoint(work_dir, say):
    """Find the newest checkpoint of a run that loads and can be resumed.

    Args:
        work_dir (str or Path): Directory with ``epoch_*.pth`` or ``iter_*.pth``.
        say (callable): Called with one line for every file that is passed over.

    Returns:
        str or None: Its path; None if there is none.
    """
    numbered = ((re.fullmatch(r'(?:epoch|iter)_(\d+)\.pth', path.name), path) for path in Path(work_dir).glob('*.pth'))
    for _, path in sorted(((int(match[1]), path) for match, path in numbered if match), reverse=True):
        try:
            missing = {'state_dict', 'optimizer', 'meta'} - load_safely(path).keys()
        except Exception as error:  # whatever a damaged file makes the unpickler raise
            reason = ''.join(str(error).splitlines()[:1])
            say(f'passed over {path}: it does not load ({type(error).__name__}: {reason[:120]})')
            continue
        if not missing:
            return str(path)
        say(f'passed over {path}: it has no {" and no ".join(sorted(missing))}')
    return None


def load_safely(path):
    """Load a checkpoint without running anything that it carries.

    Args:
        path (str or Path): File written by ``torch.save``.

    Returns:
        dict: Tensors on the CPU, plain Python values and mmengine's log history.

    Raises:
        pickle.UnpicklingError: The file wants to run something else.
    """
    with log_history_allowed():
        return torch.load(path, map_location='cpu', weights_only=True)


def forbid_running_checkpoints():
    """Have every ``torch.load`` of this process refuse to run code: the onedl set otherwise falls back to doing so."""
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'


def log_history_allowed():
    """Let ``weights_only`` take what mmengine's own checkpoints hold beside tensors, and only that.

    Without it the classic set cannot resume its own checkpoints on torch 2.6 and newer.
    """
    dtypes = {type(np.dtype(name)) for name in ('bool', 'u1', 'i4', 'i8', 'u4', 'u8', 'f4', 'f8')}
    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    return torch.serialization.safe_globals([
        HistoryBuffer, _history_buffer_method, np.ndarray, np.dtype, *dtypes, multiarray._reconstruct,
        multiarray.scalar
    ])


def _history_buffer_method(owner, name):
    if owner is not HistoryBuffer:
        raise pickle.UnpicklingError(f'refused to take {name!r} of {owner!r}')
    return getattr(owner, name)


# A log history refers to its own methods by getattr; torch looks a function up by these names
_history_buffer_method.__module__ = 'builtins'
_history_buffer_method.__name__ = _history_buffer_method.__qualname__ = 'getattr'
