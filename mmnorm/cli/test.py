"""Evaluate a checkpoint of mmdet, mmseg or mmpretrain; on several processes with --processes.

Metrics and, for COCO, predictions are left in the work dir, where mmnorm report finds them.
"""

import os
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

from .arguments import add_run_arguments

EXAMPLE = 'mmnorm test CONFIG work_dirs/CONFIG_NAME/epoch_12.pth --processes 2'


def add_arguments(parser):
    add_run_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--partial', action='store_true', help='test although the checkpoint lacks weights of the model'
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation by tta_model and tta_pipeline')
    parser.add_argument('--show-dir', help='draw predictions beside the ground truth into this folder')


def coco_metric(cfg):
    """The evaluator of a config (dict) that can write predictions, and does not do so elsewhere; None without one."""
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    free = (one for one in evaluators if one.get('type') == 'CocoMetric' and not one.get('outfile_prefix'))
    return next(free, None)


def keep(work_dir, predictions, name, record):
    """Put the predictions of a test into the work dir, then its record, with their sums: a report looks at these.

    Args:
        work_dir (str): Of the test.
        predictions (Path or None): Folder with ``predictions.*.json``; None: no predictions are kept.
        name (str): Of the record.
        record (dict): What is known of the test.
    """
    from mmnorm.files import checksum, write_json

    sums = None
    if predictions:
        sums = {part.name: checksum(part) for part in sorted(predictions.glob('predictions.*.json'))}
        for part in sums:
            os.replace(predictions / part, Path(work_dir, part))
    write_json(Path(work_dir, name), dict(record, predictions=sums))


def augment(cfg, path):
    """Have the test go through the config's test-time augmentation."""
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise ValueError(f'--tta needs tta_model and tta_pipeline in {path}')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(cfg.tta_model, module=cfg.model)


def run(args):
    """Evaluate, and write what was measured."""
    from mmengine.registry import RUNNERS

    from mmnorm import engine
    from mmnorm.files import check_writable, making_folder

    engine.die_with_parent()
    engine.forbid_running_checkpoints()
    engine.check_exists(args.checkpoint)
    cfg = engine.load_config(args, ('test',))
    cfg.load_from = args.checkpoint
    if args.show_dir:
        cfg.default_hooks.visualization.update(draw=True, test_out_dir=args.show_dir)
    if args.tta:
        augment(cfg, args.config)
    metric = coco_metric(cfg)
    check_writable(cfg.work_dir)
    if args.check:
        return
    engine.start_distributed(cfg)
    keeps = metric is not None and engine.leads_run(args.launcher)
    with making_folder(Path(cfg.work_dir, 'predictions')) if keeps else nullcontext() as predictions:
        if predictions:
            metric.outfile_prefix = str(predictions / 'predictions')
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else engine.Runner.from_cfg(cfg)
        runner.register_hook(engine.RequireWeightsHook(args.checkpoint, args.partial))
        for line in args.data_warnings:
            runner.logger.warning(line)
        metrics = runner.test()
        if runner.rank == 0:
            record = dict(
                checkpoint=args.checkpoint,
                config=args.config,
                timestamp=runner.timestamp,
                metrics=metrics,
                finished=datetime.now().astimezone().isoformat(timespec='seconds'),
            )
            keep(cfg.work_dir, predictions, 'evaluation_tta.json' if args.tta else 'evaluation.json', record)
