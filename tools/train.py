#!/usr/bin/env python
"""Train a config of mmdet or mmseg, on one process; tools/dist_train.sh runs it on several."""
import argparse
import os

from mmengine.registry import RUNNERS

from mmnorm import engine
from mmnorm.zoo import find_model


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    engine.add_common_arguments(parser)
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help='go on from CHECKPOINT, or from the newest checkpoint of the work dir that loads')
    return parser.parse_args()


def show_papers_figures(work_dir, config):
    """Print the run beside its paper, if the config is a row of one."""
    model = find_model(config)
    if model is None or not model.published:
        return
    try:
        from mmnorm.report import summarize  # so late that training needs no report packages
        print(summarize(work_dir))
    except ImportError:
        print('\n'.join(f'{row.table}, {row.row}, {row.data}: {row.headline}' for row in model.published))
    print(f'tools/report.py {work_dir} writes a report', flush=True)


def main():
    args = parse_args()
    engine.die_with_parent()
    engine.forbid_running_checkpoints()
    if args.resume not in (None, 'auto') and not os.path.isfile(args.resume):
        engine.stop(f'--resume: {args.resume} does not exist; without a file the newest checkpoint is taken')
    cfg = engine.load_config(args, ('train', 'val'))
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
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
    if args.check:
        return
    engine.start_distributed(args.launcher)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else engine.Runner.from_cfg(cfg)
    runner.register_hook(engine.RunRecordHook())
    try:
        runner.train()
    except KeyboardInterrupt:
        engine.stop(f'interrupted; go on with --resume --work-dir {cfg.work_dir}')
    if runner.rank == 0:
        show_papers_figures(cfg.work_dir, args.config)


if __name__ == '__main__':
    main()
