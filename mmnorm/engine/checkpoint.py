"""Checkpoint files, read without running anything that they carry, and what our tools note in them."""

import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

from mmnorm.files import check_file, checksum, write_text

_load = CheckpointLoader.load_checkpoint
_ORIGIN = ('converted_from', 'through', 'whose', 'licence')


class CheckpointError(ValueError):
    """A file is no checkpoint, or one that wants to run something."""


def read_checkpoint(path, map_location='cpu', logger='current'):
    """Load a checkpoint without running anything that it carries, or say what is wrong with it.

    Args:
        path (str or Path): File, or a URL that mmengine knows.
        map_location (str, device or callable): As of ``torch.load``.
        logger (str or Logger): Of mmengine, for what it tells of a download.

    Returns:
        dict: What it holds; something else, if the file does.

    Raises:
        FileNotFoundError: The file is not there, or is a folder.
        CheckpointError: It is not a checkpoint, or wants to run something, which is named.
    """
    path = os.path.expanduser(path)
    check_exists(path)
    local = '://' not in str(path)
    try:
        with log_history_allowed():
            found = (
                torch.load(path, map_location=map_location, weights_only=True)
                if local
                else _load(path, map_location, logger)
            )
    except Exception as error:  # whatever a damaged file makes the unpickler raise
        reason = _not_saved_whole(path) if local else None
        raise CheckpointError(f'{path} cannot be loaded as a checkpoint: {reason or _refused(path, error)}') from error
    if local:
        _check_sums(path)
    if isinstance(found, dict):
        _check_names(found.get('state_dict', found), path, 'state_dict' in found)
    return found


def check_exists(path):
    """Raise FileNotFoundError for the path (str or Path) of a checkpoint that is no file; not for a URL."""
    if '://' not in str(path):
        check_file(os.path.expanduser(path), 'checkpoint')


def _check_names(weights, path, whole):
    if not isinstance(weights, dict):
        raise CheckpointError(f'{path} is not a checkpoint: its state_dict is of type {type(weights).__name__}')
    others = [key for key in weights if not isinstance(key, str)]
    if others:
        raise CheckpointError(f'{path} is not a checkpoint: weights go by names, and {others[0]!r} is none')
    # beside tensors, a module may keep what it likes under this name
    kinds = {key: type(value) for key, value in weights.items() if not key.endswith('_extra_state')}
    for key, kind in kinds.items() if whole else ():
        if not issubclass(kind, (torch.Tensor, int, float)):
            what = f'weights are tensors, and {key} is of type {kind.__name__}'
            raise CheckpointError(f'{path} is not a checkpoint: {what}')


def _check_sums(path):
    """Compare the parts of a checkpoint's archive with the sums that it has of them (0.7 s for 400 MB); torch does not.

    Files of an old PyTorch, and those written under ``torch.serialization.set_crc32_options(False)``, have none.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip() if any(part.CRC for part in archive.infolist()) else None
    if damaged:
        raise CheckpointError(
            f'{path} is damaged: the bytes of its part {damaged} do not add up to the sum (CRC-32) that was saved with '
            'them, as after a faulty disk or copy. Copy it again, or take another checkpoint'
        )


def write_sum(path):
    """Note a checkpoint's SHA-256 in ``checkpoints.sha256`` beside it, for ``sha256sum --check`` after it was copied.

    Args:
        path (str or Path): The file, whole. What the list has of files that are gone is left out.
    """
    path = Path(path)
    sums, noted = _noted_sums(path)
    _write_sums(sums, {**noted, path.name: checksum(path)})


def forget_sum(path):
    """Take a checkpoint that is about to be written anew from the list: killed in between, it would not add up."""
    sums, noted = _noted_sums(Path(path))
    if noted.pop(Path(path).name, None):
        _write_sums(sums, noted)


def _noted_sums(path):
    """The list of sums beside a checkpoint (Path), and what it has of files that are there (dict)."""
    sums = path.with_name('checkpoints.sha256')
    lines = (line.partition('  ') for line in (sums.read_text().splitlines() if sums.exists() else ()))
    return sums, {name: value for value, _, name in lines if path.with_name(name or '.').is_file()}


def _write_sums(sums, noted):
    write_text(sums, ''.join(f'{value}  {name}\n' for name, value in noted.items()))


def _not_saved_whole(path):
    """What keeps a file from being a whole one of torch.save (str); None if nothing does."""
    with open(path, 'rb') as file:
        start = file.read(32)
    if not start:
        return 'it is empty'
    if start.startswith(b'PK'):
        if not zipfile.is_zipfile(path):
            return 'its end is missing, as after an interrupted download'
        with zipfile.ZipFile(path) as archive:
            parts = [name.rpartition('/')[2] for name in archive.namelist()]
        return None if 'data.pkl' in parts else 'it is a ZIP archive of something else'
    # an old PyTorch wrote pickles
    return None if start.startswith(b'\x80') else f'it begins with {start!r}, which torch.save does not write'


def _refused(path, error):
    """Why loading a file ended with an error."""
    if not isinstance(error, pickle.UnpicklingError):
        reason = ''.join(str(error).splitlines()[:1]).partition('. ')[0]
        if 'TorchScript' in reason:
            return 'it is a TorchScript program; use a file of its state dict alone'
        return f'{type(error).__name__}: {reason[:160]}'
    wanted = _unsafe(path) or re.findall(r'GLOBAL (\S+)', str(error))
    if not wanted:
        return 'it is damaged, or holds more than tensors and plain values'
    names = ', '.join(ascii(name)[1:-1] for name in wanted[:3]) + ' ...' * (len(wanted) > 3)
    return f'refused, because it would run {names}; ask whoever made it for a file of the state dict alone'


def _unsafe(path):
    """What a file would run (list[str]), read from its instructions without following any; [] where that fails."""
    try:
        with log_history_allowed():
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a URL, a file of an old PyTorch, or instructions that are damaged
        return []


def note_of(checkpoint):
    """What a tool of ours noted in a file that it wrote (dict); {} in files of others."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    note = meta.get('mmnorm') if isinstance(meta, dict) else None
    return note if isinstance(note, dict) else {}


def origin_of(checkpoint):
    """The part of a note (dict) that tells where converted weights come from, which all that is made of them keeps."""
    note = note_of(checkpoint)
    return {key: note[key] for key in _ORIGIN} if note.keys() >= set(_ORIGIN) else {}


def forbid_running_checkpoints():
    """Have this process refuse to run what checkpoints carry, whoever loads them.

    Every ``torch.load`` refuses: the onedl set otherwise falls back to running it. And mmengine (``load_from``,
    ``resume``, ``init_cfg``) reads by :func:`read_checkpoint`: torch's own message advises to run the file.
    """
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    CheckpointLoader.load_checkpoint = read_checkpoint


def log_history_allowed():
    """Let ``weights_only`` take what mmengine's own checkpoints hold beside tensors, and only that.

    Without it the classic set cannot resume its own checkpoints on torch 2.6 and newer.
    """
    dtypes = {type(np.dtype(name)) for name in ('bool', 'u1', 'i4', 'i8', 'u4', 'u8', 'f4', 'f8')}
    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    return torch.serialization.safe_globals(
        [
            HistoryBuffer,
            _history_buffer_method,
            np.ndarray,
            np.dtype,
            *dtypes,
            multiarray._reconstruct,
            multiarray.scalar,
        ]
    )


def _history_buffer_method(owner, name):
    if owner is not HistoryBuffer:
        raise pickle.UnpicklingError(f'refused to take {name!r} of {owner!r}')
    return getattr(owner, name)


# A log history refers to its own methods by getattr; torch looks a function up by these names
_history_buffer_method.__module__ = 'builtins'
_history_buffer_method.__name__ = _history_buffer_method.__qualname__ = 'getattr'
