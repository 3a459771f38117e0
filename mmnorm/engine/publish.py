"""Checkpoints to be given to others: weights alone, in a file that has its sum in its name."""

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

import torch

from mmnorm.files import check_writable, describe_size, write_bytes

from .checkpoint import CheckpointError, note_of, read_checkpoint

#: What a published file keeps of what mmengine states about a checkpoint: no paths, seeds or host names.
KEPT = ('cfg', 'dataset_meta', 'epoch', 'iter', 'mmnorm')


class Published(NamedTuple):
    """What :func:`publish` did.

    Attributes:
        path (Path): The file.
        tensors (int): How many it holds.
        size (int): Its bytes.
        before (int): Bytes of the source.
        left_out (list[str]): What of the source is not in it.
        licence (str): That its note states; '' if none does.
    """

    path: Path
    tensors: int
    size: int
    before: int
    left_out: list
    licence: str

    def text(self):
        """Lines (str) for the user."""
        return (
            f'{self.tensors} tensors, {describe_size(self.size)} of {describe_size(self.before)}; left out: '
            f'{", ".join(self.left_out) or "nothing"}\n'
            f'license: {self.licence or "none is stated; say which holds when you give it away"}'
        )


class Weights(NamedTuple):
    """What of a checkpoint is given away.

    Attributes:
        tensors (dict[str, Tensor]): By name, finite.
        meta (dict): What is kept of what it states about itself, with the note of our tools.
        left_out (list[str]): What of the file is not among them.
    """

    tensors: dict
    meta: dict
    left_out: list


def strip(source, only=''):
    """Read the weights of a checkpoint alone.

    Args:
        source (str or Path): A checkpoint file.
        only (str): Keep what is under this prefix, without it, as 'backbone'. Default: all.

    Returns:
        Weights: Of mmengine's EMAHook the averages, which it saves as the weights of the network.

    Raises:
        FileNotFoundError: ``source`` is not there.
        CheckpointError: It is no checkpoint, holds no weights, none under ``only``, or weights that are not finite.
    """
    checkpoint = read_checkpoint(source)
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{source} is not a checkpoint: it holds a {type(checkpoint).__name__}')
    entries = checkpoint.get('state_dict', checkpoint)
    prefix = only and f'{only.rstrip(".")}.'
    named = {key.removeprefix('module.'): value for key, value in entries.items() if torch.is_tensor(value)}
    # clones: a view would be saved with all of what it is a view of
    weights = {key[len(prefix) :]: value.clone() for key, value in named.items() if key.startswith(prefix)}
    if not weights:
        parts = ', '.join(dict.fromkeys(key.partition('.')[0] for key in named)) or 'none'
        raise CheckpointError(f'{source} has no weights{prefix and f" under {prefix}"}: it has {parts}')
    broken = [key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(
            f'{source} holds NaN or infinity in {len(broken)} of its tensors; first: {broken[0]}. Its training '
            'diverged: publish a checkpoint from before that'
        )
    meta = checkpoint.get('meta') if isinstance(checkpoint.get('meta'), dict) else {}
    left_out = (
        [str(key) for key in checkpoint if key not in ('state_dict', 'meta')] if entries is not checkpoint else []
    )
    if len(weights) < len(named):
        left_out.append(f'{len(named) - len(weights)} tensors not under {prefix}')
    return Weights(weights, {key: meta[key] for key in KEPT if key in meta}, left_out)


def publish(source, out=None, only=''):
    """Write the weights of a checkpoint to ``NAME-SUM.pth``.

    Args:
        source (str or Path): A checkpoint file.
        out (str or Path or None): Its name but for the sum, ending in .pth. Default: that of the source.
        only (str): Keep what is under this prefix, without it, as 'backbone'. Default: all.

    Returns:
        Published: What was done. If the same file is there already, it stays.

    Raises:
        FileNotFoundError, CheckpointError: As :func:`strip`.
        ValueError: ``out`` does not end in .pth.
        WriteError: It cannot be written.
    """
    out = Path(source if out is None else out)
    check_name(out)
    weights = strip(source, only)
    content = _content(weights)
    path = out.with_name(f'{out.stem}-{hashlib.sha256(content).hexdigest()[:8]}.pth')
    return _write(path, content, weights, source)


def publish_as(path, weights, source, note):
    """Write weights to a file of this very name, whatever was there before.

    Args:
        path (str or Path): The file, ending in .pth; its folder is made.
        weights (Weights): As :func:`strip` gives them.
        source (str or Path): Where they are from.
        note (dict): Of plain values, kept in the file's note with what that says already.

    Returns:
        Published: What was done.
    """
    check_name(path)
    meta = dict(weights.meta, mmnorm={**note_of(dict(meta=weights.meta)), **note})
    return _write(Path(path), _content(weights._replace(meta=meta)), weights, source)


def check_name(out):
    """Raise a ValueError or WriteError unless a path (str or Path) can be that of a published file."""
    if Path(out).suffix != '.pth':
        raise ValueError(f'{out} would be a checkpoint: its name must end in .pth')
    check_writable(Path(out).parent)


def _content(weights):
    saved = io.BytesIO()
    torch.save(dict(meta=weights.meta, state_dict=weights.tensors), saved)
    return saved.getvalue()


def _write(path, content, weights, source):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)
    licence = note_of(dict(meta=weights.meta)).get('licence', '')
    before = Path(source).stat().st_size
    return Published(path, len(weights.tensors), len(content), before, weights.left_out, str(licence))
