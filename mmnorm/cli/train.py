"""Train a config of mmdet, mmseg or mmpretrain; on several processes with --processes."""

import logging
import shlex
from contextlib import nullcontext

from .arguments import add_run_arguments, positive_or_0
from .light import light

EXAMPLE = 'mmnorm train configs/mask_rcnn_xbn_r50_digits.py --processes 2'


def add_arguments(parser):
    add_run_arguments(parser)
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from CHECKPOINT, or from the newest checkpoint in the work dir that can be loaded',
    )
    parser.add_argument(
        '--stop-on-nan',
        type=positive_or_0,
        default=20,
        metavar='N',
        help='end when the loss has been NaN or infinite for N iterations in a row (default: 20; 0: go on)',
    )


def describe_batch(cfg, config, processes):
    """Say what a schedule that counts iterations comes to when batches are not of the size that it is for.

    Args:
        cfg (Config): As it is trained.
        config (str): Its file.
        processes (int): Of the training.

    Returns:
        str: With the options that make up for it; '' if there is nothing to say, also if the user has chosen another
        number of iterations than the config, or the config of the zoo that it inherits from.
    """
    from mmnorm import engine
    from mmnorm.zoo import find_model

    base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    batch = (cfg.train_dataloader.get('batch_size') or 0) * processes
    iterations = (cfg.get('train_cfg') or {}).get('max_iters')
    if not (base and batch and iterations) or batch == base:
        return ''
    model = find_model(config)
    meant = engine.parse_config(model.path if model else config)
    if iterations != (meant.get('train_cfg') or {}).get('max_iters'):
        return ''

    def scale(number):
        return round(number * base / batch)

    options = {'train_cfg.max_iters': scale(iterations)}
    schedulers = cfg.get('param_scheduler') or []
    places = {'': schedulers} if isinstance(schedulers, dict) else {f'.{i}': one for i, one in enumerate(schedulers)}
    for place, scheduler in places.items():
        if 'milestones' in scheduler:
            options[f'param_scheduler{place}.milestones'] = [scale(step) for step in scheduler.milestones]
        if scheduler.get('end') == iterations:  # that of a warm-up stays
            options[f'param_scheduler{place}.end'] = scale(iterations)
    options = ' '.join(shlex.quote(f'{key}={value}'.replace(' ', '')) for key, value in options.items())
    return (
        f'{processes} x {cfg.train_dataloader.batch_size} images are a batch of {batch}, and {config} is for '
        f'{base}: its {iterations:,} iterations see {iterations * batch:,} images, not {iterations * base:,}. '
        f'To see as many, pass --cfg-options {options}'
    )


def show_papers_figures(work_dir, config):
    """Print the run beside its paper, if the config is a row of one or inherits from one."""
    from mmnorm.zoo import find_model

    model = find_model(config)
    if model is None or not model.published:
        return
    try:
        from mmnorm.report import summarize  # so late that training needs no report packages

        print(summarize(work_dir))
    except ImportError:
        print(
            '\n'.join(f'{row.table}, {row.row}, {row.data}: {row.headline}' for row in model.published if row.metrics)
        )
    print(f'{light("terminal").command("report")} {work_dir} writes a report', flush=True)


def with_what_is_safe(error, work_dir):
    """An error (OSError) that ends a training; where a file could not be written, with how to go on."""
    from mmnorm import engine
    from mmnorm.files import WriteError

    newest = engine.newest_checkpoint(work_dir, lambda line: None) if isinstance(error, WriteError) else None
    if newest is None:
        return error
    return WriteError(f'{error}. {newest} is whole: when there is room, continue with --resume --work-dir {work_dir}')


def run(args):
    """Check that a training can run, and train."""
    from mmengine.device import get_device

    from mmnorm import engine
    from mmnorm.engine.networks import build_network
    from mmnorm.files import check_file, check_writable

    engine.die_with_parent()
    engine.forbid_running_checkpoints()
    if args.resume not in (None, 'auto'):  # without a file the newest checkpoint is taken
        check_file(args.resume, '--resume:')
    cfg = engine.load_config(args, ('train', 'val'))
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if getattr(wrapper, '__name__', wrapper) == 'AmpOptimWrapper' and get_device() == 'cpu':
        engine.stop(
            'mixed precision needs a GPU, and this machine has none: '
            + ('leave out --amp' if args.amp else f"set optim_wrapper.type='OptimWrapper' in {args.config}")
        )
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            engine.stop(f'--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=...) in {args.config}')
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    checkpoint = cfg.default_hooks.get('checkpoint') or {}
    if checkpoint.get('max_keep_ckpts') == 1:
        checkpoint.max_keep_ckpts = 2  # mmengine deletes the old one before it writes the new one
    check_writable(cfg.work_dir)
    if args.check:
        engine.check_unused(cfg.work_dir)
        if not args.launches:  # else the training that follows checks that, with the network that it builds
            engine.check_room(cfg, build_network(cfg))
        return
    with engine.training_lock(cfg.work_dir) if engine.leads_run(args.launcher) else nullcontext():
        train(cfg, args)


def train(cfg, args):
    """Train a config (Config) as it is."""
    from mmengine.registry import RUNNERS

    from mmnorm import engine
    from mmnorm.files import as_write_error
    from mmnorm.openmmlab.hooks import NonFiniteLossError, StopOnNaNHook
    from mmnorm.openmmlab.loading import ResumeError

    engine.start_distributed(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else engine.Runner.from_cfg(cfg)
    runner.register_hook(engine.CheckRoomHook())
    runner.register_hook(engine.RunRecordHook())
    if args.stop_on_nan > 0 and not any(isinstance(hook, StopOnNaNHook) for hook in runner.hooks):
        runner.register_hook(StopOnNaNHook(args.stop_on_nan))
    for line in args.data_warnings:
        runner.logger.warning(line)
    batch = describe_batch(cfg, args.config, runner.world_size)
    if batch:
        runner.logger.warning(batch)
    logging.raiseExceptions = False  # a full disk is told once, by what ends the training, and not by each line of log
    try:
        runner.train()
    except ResumeError as error:
        train = light('terminal').command('train')
        engine.stop(f'{error} With {train}: --cfg-options load_from=FILE, without --resume.')
    except NonFiniteLossError as error:
        newest = engine.newest_checkpoint(cfg.work_dir, lambda line: None) if engine.on_first_rank() else None
        engine.stop(
            f'{error}. A smaller learning rate, clip_grad or a longer warm-up may help; --stop-on-nan 0 goes on. '
            + (f'{newest} is from before: --resume continues from it' if newest else 'No checkpoint is from before')
        )
    except OSError as error:
        raise with_what_is_safe(as_write_error(error), cfg.work_dir) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f'continue with --resume --work-dir {cfg.work_dir}') from None
    if runner.rank == 0:
        show_papers_figures(cfg.work_dir, args.config)
