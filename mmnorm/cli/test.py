"""Evaluate a checkpoint of mmdet or mmseg; on several processes with --processes.

Metrics and, for COCO, predictions are left in the work dir, where mmnorm report finds them.
"""

import os
from datetime import datetime
from pathlib import Path

from mmengine.registry import RUNNERS

from mmnorm import engine
from mmnorm.files import check_writable, write_json

from .arguments import add_run_arguments

EXAMPLE = 'mmnorm test CONFIG work_dirs/CONFIG_NAME/epoch_12.pth --processes 2'


def add_arguments(parser):
    add_run_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation by tta_model and tta_pipeline')
    parser.add_argument('--show-dir', help='draw predictions beside the ground truth into this folder')


def keep_predictions(cfg):
    """Have COCO metrics write their predictions into the work dir; returns the files' common prefix, or None."""
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    for evaluator in evaluators:
        if evaluator.get('type') == 'CocoMetric' and not evaluator.get('outfile_prefix'):
            evaluator.outfile_prefix = os.path.join(cfg.work_dir, 'partial')
            return evaluator.outfile_prefix
    return None


def augment(cfg, path):
    """Have the test go through the config's test-time augmentation."""
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        engine.stop(f'--tta needs tta_model and tta_pipeline in {path}')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(cfg.tta_model, module=cfg.model)


def run(args):
    """Evaluate, and write what was measured."""
    engine.die_with_parent()
    engine.forbid_running_checkpoints()
    if not os.path.isfile(args.checkpoint) and '://' not in args.checkpoint:
        engine.stop(f'checkpoint {args.checkpoint} does not exist')
    cfg = engine.load_config(args, ('test',))
    cfg.load_from = args.checkpoint
    if args.show_dir:
        cfg.default_hooks.visualization.update(draw=True, test_out_dir=args.show_dir)
    if args.tta:
        augment(cfg, args.config)
    prefix = keep_predictions(cfg)
    check_writable(cfg.work_dir)
    if args.check:
        return
    engine.start_distributed(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else engine.Runner.from_cfg(cfg)
    for line in args.data_warnings:
        runner.logger.warning(line)
    with engine.stopping_for_the_user(engine.CheckpointError):
        metrics = runner.test()
    if runner.rank == 0:
        if prefix:  # under their final name only when they are whole
            for part in Path(cfg.work_dir).glob('partial.*.json'):
                part.replace(part.with_name(part.name.replace('partial', 'predictions', 1)))
        write_json(
            Path(cfg.work_dir, 'evaluation_tta.json' if args.tta else 'evaluation.json'),
            dict(
                checkpoint=args.checkpoint,
                config=args.config,
                timestamp=runner.timestamp,
                metrics=metrics,
                finished=datetime.now().astimezone().isoformat(timespec='seconds'),
            ),
        )
