#!/usr/bin/env python
"""Evaluate a checkpoint of mmdet or mmseg, on one process; tools/dist_test.sh runs it on several.

Metrics and, for COCO, predictions are left in the work dir, where tools/report.py finds them.
"""
import argparse
import os
from datetime import datetime
from pathlib import Path

from mmengine.registry import RUNNERS

from mmnorm import engine


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    engine.add_common_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation by tta_model and tta_pipeline')
    parser.add_argument('--show-dir', help='draw predictions beside the ground truth into this folder')
    return parser.parse_args()


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


def main():
    args = parse_args()
    engine.die_with_parent()
    engine.forbid_running_checkpoints()
    if not os.path.isfile(args.checkpoint) and '://' not in args.checkpoint:
        engine.stop(f'checkpoint {args.checkpoint} does not exist')
    cfg = engine.load_config(args, ('test', ))
    cfg.load_from = args.checkpoint
    if args.show_dir:
        cfg.default_hooks.visualization.update(draw=True, test_out_dir=args.show_dir)
    if args.tta:
        augment(cfg, args.config)
    prefix = keep_predictions(cfg)
    if args.check:
        return
    engine.start_distributed(args.launcher)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else engine.Runner.from_cfg(cfg)
    metrics = runner.test()
    if runner.rank == 0:
        if prefix:  # under their final name only when they are whole
            for part in Path(cfg.work_dir).glob('partial.*.json'):
                part.replace(part.with_name(part.name.replace('partial', 'predictions', 1)))
        engine.write_json(
            Path(cfg.work_dir, 'evaluation_tta.json' if args.tta else 'evaluation.json'),
            dict(checkpoint=args.checkpoint, config=args.config, timestamp=runner.timestamp, metrics=metrics,
                 finished=datetime.now().astimezone().isoformat(timespec='seconds')))


if __name__ == '__main__':
    main()
