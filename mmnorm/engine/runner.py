"""mmengine's Runner, with checkpoints that survive interruption."""

import re
from pathlib import Path

import torch
from mmengine.dist import broadcast_object_list, get_rank, master_only
from mmengine.runner import Runner as _Runner

from mmnorm.files import replacing
from mmnorm.statistics import unwrapped

from .checkpoint import CheckpointError, forget_sum, log_history_allowed, read_checkpoint, write_sum
from .positions import SeedStepsHook
from .resume import EvaluateDueHook, KeepStateHook, fit_position, schedule_of
from .room import size_of_next


class Runner(_Runner):
    """mmengine's Runner that writes checkpoints atomically, and resumes as if it had not been interrupted.

    A checkpoint is written to a temporary file, flushed to the disk and renamed: under its name it is either whole or
    absent. ``resume=True`` without ``load_from`` tries the checkpoints of the work directory, newest first, and says
    which it passed over and why. A resumed training is the uninterrupted one to the bit, on a CPU, or it says what
    differs (:mod:`.positions`, :mod:`.resume`).
    """

    _keep = None

    def train(self):
        if not self._keep:
            self._keep = KeepStateHook()
            for hook in SeedStepsHook(), self._keep, EvaluateDueHook():
                self.register_hook(hook)
        return super().train()

    def build_train_loop(self, loop):
        built = super().build_train_loop(loop)
        loader = getattr(built, 'dataloader', None)
        if getattr(loader, 'batch_sampler', None) is not None and not len(loader):  # mmengine would train nothing
            raise ValueError(
                f'train_dataloader gives no batch of its {len(loader.dataset)} images: batch_size is '
                f'{loader.batch_sampler.batch_size}, and drop_last leaves out what is less'
            )
        return built

    def resume(self, filename, *args, **kwargs):
        start = self._keep and schedule_of(self)
        super().resume(filename, *args, **kwargs)
        if self._keep:
            fit_position(self, filename, self._keep.resumed, start)

    @master_only
    def save_checkpoint(self, out_dir, filename, file_client_args=None, save_optimizer=True, **kwargs):
        kwargs.update(file_client_args=file_client_args, save_optimizer=save_optimizer)
        if '://' in str(out_dir):  # an object store, whose uploads are atomic
            return super().save_checkpoint(out_dir, filename, **kwargs)
        forget_sum(Path(out_dir, filename))
        with replacing(Path(out_dir, filename), lambda: size_of_next(self, save_optimizer)) as partial:
            super().save_checkpoint(out_dir, partial.name, **kwargs)
        write_sum(Path(out_dir, filename))

    def load_checkpoint(self, filename, *args, **kwargs):
        with log_history_allowed():
            checkpoint = super().load_checkpoint(filename, *args, **kwargs)
        network = unwrapped(self.model)
        theirs = {key.removeprefix('module.') for key in checkpoint.get('state_dict', checkpoint)}
        if self._keep and theirs.isdisjoint(network.state_dict()):  # else a training would start from nothing
            raise CheckpointError(
                f'{filename} has no weights of the model: the first of these is {next(iter(network.state_dict()))}'
            )
        return checkpoint

    def load_or_resume(self):
        if self._resume and self._load_from is None and not self._has_loaded:
            newest = [newest_checkpoint(self.work_dir, self.logger.warning) if get_rank() == 0 else None]
            broadcast_object_list(newest)
            self._load_from = newest[0]
            if self._load_from is None:
                self.logger.warning(f'{self.work_dir} has no checkpoint that can be loaded: training starts anew')
                self._resume = False
        super().load_or_resume()


def newest_checkpoint(work_dir, say):
    """Find the newest checkpoint of a run that loads and can be resumed.

    Args:
        work_dir (str or Path): Directory with ``epoch_*.pth`` or ``iter_*.pth``.
        say (callable): Called with one line for every file that is skipped.

    Returns:
        str or None: Its path; None if there is none.
    """
    numbered = ((re.fullmatch(r'(?:epoch|iter)_(\d+)\.pth', path.name), path) for path in Path(work_dir).glob('*.pth'))
    for _, path in sorted(((int(match[1]), path) for match, path in numbered if match), reverse=True):
        try:
            loaded = read_checkpoint(path)
        except (OSError, ValueError) as error:
            say(f'skipping {path}: {str(error).removeprefix(str(path)).lstrip()}')
            continue
        missing = {'state_dict', 'optimizer', 'meta'}.difference(loaded if isinstance(loaded, dict) else ())
        if missing:
            say(f'skipping {path}: it has no {" and no ".join(sorted(missing))}')
        elif any(torch.is_tensor(value) and value.isnan().any() for value in loaded['state_dict'].values()):
            say(f'skipping {path}: its weights have become NaN')
        else:
            return str(path)
    return None
