"""A trained network as its config describes it: its weights, its test with its own metric, batches of its training."""

import contextlib
import copy
import io
import itertools
import os
import tempfile
from pathlib import Path

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.runner.amp import autocast

from mmnorm.files import check_writable, write_together
from mmnorm.openmmlab.batches import training_batches
from mmnorm.openmmlab.configs import SYNC_TYPES, replace_norm_types
from mmnorm.openmmlab.padding import ValidRegionHook, normalize_valid_regions
from mmnorm.openmmlab.resampling import recorded
from mmnorm.statistics import unwrapped
from mmnorm.terminal import command, on_first_rank, progress, working

from .checkpoint import CheckpointError, check_exists, forbid_running_checkpoints, origin_of, read_checkpoint, write_sum
from .config import load_config, parse_config, stop
from .processes import die_with_parent, start_distributed
from .runner import Runner
from .settings import merge_options


def open_evaluation(args, splits=('train', 'test')):
    """What a tool that looks at a trained network starts with.

    Args:
        args (Namespace): From a parser with :func:`~mmnorm.cli.arguments.add_run_arguments`, ``checkpoint``,
            ``seed`` and ``batch_size`` (None: the config's).
        splits (tuple[str]): Which of 'train', 'test' it reads.

    Returns:
        tuple[Evaluation, Config]: And the config as its file has it, with the user's options, not fit to this machine.

    Raises:
        SystemExit: Something is missing, with a message for the user; or ``--check`` asked for no more.
    """
    die_with_parent()
    forbid_running_checkpoints()
    check_exists(args.checkpoint)
    cfg = load_config(args, splits, initializes=False)
    needed = ['test_dataloader', 'test_evaluator', *(f'{split}_dataloader' for split in splits)]
    missing = [key for key in dict.fromkeys(needed) if not cfg.get(key)]
    if missing:
        stop(f'{args.config} has no {" and no ".join(missing)}, which this needs')
    if args.batch_size and 'train' in splits:
        cfg.train_dataloader.batch_size = args.batch_size
    if args.check:
        raise SystemExit
    original = parse_config(args.config)
    merge_options(original, args.cfg_options)
    start_distributed(cfg)
    evaluation = Evaluation(cfg, args.checkpoint, args.seed)
    evaluation.notes += args.data_warnings
    if original.get('sync_bn') or replace_norm_types(copy.deepcopy(original.model), SYNC_TYPES):
        evaluation.notes.append(
            'Its training synchronized BN, which normalizes over the images of all processes: '
            'unless this runs on as many GPUs, set --batch-size to their number.'
        )
    return evaluation, original


class Evaluation:
    """A network of a config with a checkpoint's weights, in evaluation mode.

    Args:
        cfg (Config): As :func:`~mmnorm.engine.load_config` returns it; changed in place.
        checkpoint (str): File or URL.
        seed (int): Of the choice and augmentation of training images, and of samplers in heads.

    Attributes:
        model (nn.Module): Wrapped, if there are several processes.
        network (nn.Module): Without the wrapper.
        work_dir (str): Of the config or the user; nothing is written there.
        loaded (dict): What the checkpoint holds.
        notes (list[str]): What the user should know of what is found with it.
        per_image (dict): What the metrics of the last :meth:`evaluate` are made of, see
            :func:`~mmnorm.openmmlab.resampling.recorded`; on the first rank.

    Raises:
        ValueError: The checkpoint does not fit the config, or its test gives no metric.
    """

    def __init__(self, cfg, checkpoint, seed=0):
        cfg.log_level = 'WARNING'
        cfg.load_from, cfg.resume, cfg.randomness = None, False, dict(seed=seed)
        self.work_dir = cfg.work_dir
        # a checkpoint's weights are the averaged ones already, and hooks of training have no part in this
        kinds = [getattr(hook, 'type', type(hook)) for hook in cfg.get('custom_hooks') or []]
        cfg.custom_hooks = []
        self._folder = tempfile.TemporaryDirectory(prefix='mmnorm_')  # for what a Runner leaves: logs, its config
        cfg.work_dir = self._folder.name
        for evaluator in cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]:
            if evaluator.get('format_only'):
                raise ValueError(
                    'test_evaluator of the config has format_only=True, which writes predictions and '
                    'gives no metric: give it and test_dataloader a set with annotations, such as that of '
                    'val_evaluator and val_dataloader'
                )
            if evaluator.get('outfile_prefix'):  # that of the user's own tests stays
                evaluator.outfile_prefix = os.path.join(cfg.work_dir, 'predictions')
        self.cfg, self.checkpoint, self.seed, self.notes, self.per_image = cfg, checkpoint, seed, [], {}
        with _quiet():
            self._runner = Runner.from_cfg(cfg)
            self._test_loader = self._build_test_loader()
            self._evaluator = self._runner.build_evaluator(cfg.test_evaluator)
        self._evaluator.dataset_meta = getattr(self._test_loader.dataset, 'metainfo', None)
        self.model = self._runner.model
        if any(ValidRegionHook.__name__ in str(kind) for kind in kinds):  # which is a matter of evaluation
            normalize_valid_regions(self.model)
        self.network = unwrapped(self.model)
        self.loaded = read_checkpoint(checkpoint)
        load_weights(self.network, self.loaded, checkpoint)
        self.model.eval()
        self._tell_progress_of_training()

    def _tell_progress_of_training(self):
        """Let losses that change in the course of a training (YOLOX, TOOD) be those of its end."""
        meta, progress_of = self.loaded.get('meta') or {}, MessageHub.get_current_instance()
        for key in ('iter', 'epoch'):
            for name in (key, f'max_{key}s'):
                if progress_of.get_info(name) is None:
                    progress_of.update_info(name, int(meta.get(key) or 0))

    def evaluate(self, what='evaluating'):
        """Run the test set through the network.

        Args:
            what (str): Shown beside the progress bar.

        Returns:
            dict[str, float]: The metrics of the config's evaluator, on every rank.
        """
        self.model.eval()
        fp16 = bool((self.cfg.get('test_cfg') or {}).get('fp16'))
        with torch.no_grad():
            for batch in progress(self._test_loader, what):
                with autocast(enabled=fp16):
                    outputs = self.model.test_step(batch)
                self._evaluator.process(data_samples=outputs, data_batch=batch)
        with _quiet(), working('computing metrics'), recorded(self._evaluator.metrics) as self.per_image:
            return self._evaluator.evaluate(self.test_images)

    @property
    def test_images(self):
        """How many images (int) the test set has."""
        return len(self._test_loader.dataset)

    def training_batches(self, number, what='training images'):
        """Batches of the training set, of the training's size, pipeline and augmentation; the same ones each time.

        Args:
            number (int): How many at most; each process has as many of its own.
            what (str): Shown beside the progress bar.

        Yields:
            dict: What the data loader gives.
        """
        with _quiet():
            batches, number = training_batches(self.cfg.train_dataloader, number, self.seed)
        yield from progress(batches, what, number)

    def test_batches(self, number, what='test images', batch_size=None):
        """As :meth:`training_batches`, of the test set; of its own batch size unless another is given."""
        loader = self._build_test_loader(batch_size) if batch_size else self._test_loader
        number = torch.tensor(min(number, len(loader)))
        all_reduce(number, 'min')
        number = int(number)
        yield from progress(itertools.islice(loader, number), what, number)

    @property
    def batch_size(self):
        """Images in a training batch of one process; None where the config does not say."""
        return self.cfg.train_dataloader.get('batch_size')

    def _build_test_loader(self, batch_size=None):
        loader_cfg = self.cfg.test_dataloader.copy()
        if batch_size:
            loader_cfg.update(batch_size=batch_size, drop_last=True)
        sampler = dict(loader_cfg.get('sampler') or {})
        if sampler.get('type') == 'DefaultSampler':
            # padded so that ranks have equally many, some images would count twice in statistics
            loader_cfg.sampler = dict(sampler, round_up=False)
        return self._runner.build_dataloader(loader_cfg, seed=self.seed)


def load_weights(model, checkpoint, path):
    """Load weights that must fit.

    Args:
        model (nn.Module): Without wrapper.
        checkpoint (dict): Its state_dict, or a dict that has it.
        path (str): Where it came from, to be named.

    Raises:
        ValueError: Keys are missing or shapes differ; it names the first of them.
    """
    missing = _load_weights(model, checkpoint, path)
    if missing:
        raise ValueError(missing)


def _load_weights(model, checkpoint, path):
    """:func:`load_weights` that returns what it says (str) of missing keys; '' if there are none."""
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} is not a checkpoint: it holds a {type(checkpoint).__name__}')
    weights = checkpoint.get('state_dict', checkpoint)
    weights = {key.removeprefix('module.'): value for key, value in weights.items()}
    try:
        found = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        lines = str(error).splitlines()
        what = '; '.join(line.strip().rstrip('.') for line in lines[1:4])
        raise ValueError(f'{path} does not fit the config: {what}') from error
    # what training alone needs may be kept beside (an averaged model's counter, a teacher)
    extra = f'{len(found.unexpected_keys)} keys not used' if found.unexpected_keys else ''
    if found.missing_keys:
        return (
            f'{path} does not fit the config: missing {len(found.missing_keys)} of {len(model.state_dict())} keys; '
            f'first: {found.missing_keys[0]}{extra and f"; {extra}"}'
        )
    if extra and on_first_rank():
        print(f'{path}: {extra}; first: {found.unexpected_keys[0]}')
    return ''


class RequireWeightsHook(Hook):
    """Raise a CheckpointError before a test by weights that lack something, or that no test can be made with.

    mmengine loads what fits and tests with whatever else the model was initialized with.

    Args:
        path (str): The checkpoint.
        partial (bool): Only say what is missing.
    """

    def __init__(self, path, partial=False):
        self.path, self.partial = path, partial

    def after_load_checkpoint(self, runner, checkpoint):
        network = runner.model
        while hasattr(network, 'module'):  # several processes, test-time augmentation
            network = network.module
        try:
            missing = _load_weights(network, checkpoint, self.path)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        if missing and not self.partial:
            raise CheckpointError(f'{missing}. To test what the network is without them: --partial')
        if missing:
            runner.logger.warning(f'{missing}. They keep their initial values')
        broken = [
            name
            for name, value in network.state_dict().items()
            if value.is_floating_point()
            and (not value.isfinite().all() or name.endswith('.running_var') and (value < 0).any())
        ]
        if broken:
            raise CheckpointError(
                f'{self.path} gives no test: NaN, infinity or a negative variance in {len(broken)} of its tensors; '
                f'first: {broken[0]}. Its training diverged: take a checkpoint from before that. Where all are running '
                f'statistics, {command("statistics")} recollect may repair them'
            )


def save_network(weights, checkpoint, out, note, cfg=None):
    """Write a checkpoint, and beside it the config that builds its network; both or none, and over no file.

    Args:
        weights (dict[str, Tensor]): State dict of the network, without wrapper.
        checkpoint (dict): What the network was loaded from: its ``meta`` is taken over, optimizer and log are not.
        out (str or Path): The checkpoint, ending in .pth; its folder is made.
        note (dict): What was done, of plain values, kept as ``meta['mmnorm']`` with the origin of converted weights.
        cfg (Config or None): Written as ``out`` with .py in the place of .pth.

    Returns:
        list[Path]: What was written.

    Raises:
        ValueError: ``out`` does not end in .pth.
        FileExistsError: A file of that name is there.
    """
    out = Path(out)
    targets = check_free(out, with_config=cfg is not None)
    out.parent.mkdir(parents=True, exist_ok=True)
    meta = dict(checkpoint.get('meta') or {}, mmnorm={**origin_of(checkpoint), **note})
    if cfg is not None:
        meta['cfg'] = cfg.pretty_text
    saved = io.BytesIO()
    torch.save(dict(meta=meta, state_dict={key: value.cpu() for key, value in weights.items()}), saved)
    contents = {out: saved.getbuffer()}
    write_together(contents if cfg is None else {out.with_suffix('.py'): meta['cfg'], **contents})
    write_sum(out)
    return targets


def check_free(out, with_config=False):
    """Files that a checkpoint, with its config, would be written to; see :func:`save_network` for what is raised."""
    out = Path(out)
    if out.suffix != '.pth':
        raise ValueError(f'{out} would be a checkpoint: its name must end in .pth')
    targets = [out, out.with_suffix('.py')] if with_config else [out]
    for target in targets:
        if os.path.lexists(target):
            raise FileExistsError(f'{target} exists already and is not overwritten: choose another name')
    check_writable(out.parent)
    return targets


@contextlib.contextmanager
def _quiet():
    """Without what data sets and metrics print."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
