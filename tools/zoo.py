#!/usr/bin/env python
"""List the configs of the papers' tables, show what a paper says of one, check them, or search a learning rate."""
import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from a checkout without installing


def parse_args(argv):
    from mmnorm.zoo import DATA, MODES, PAPERS, TASKS

    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument('names', nargs='*', metavar='NAME', help='configs by name or path (default: all)')
    chosen.add_argument('--paper', nargs='+', choices=PAPERS, metavar='PAPER', help=', '.join(PAPERS))
    chosen.add_argument('--norm', nargs='+', metavar='NORM', help='SN (SyncSN as well), RBN, XBN (any; or XBN-GN), BN, GN, ...')
    chosen.add_argument('--task', nargs='+', choices=[task.split()[0] for task in TASKS], metavar='TASK',
                        help='object (detection), instance, panoptic or semantic (segmentation)')
    chosen.add_argument('--mode', nargs='+', choices=MODES, metavar='MODE',
                        help='frozen: pretrained, BNs fixed; live: pretrained, norms train; scratch')
    chosen.add_argument('--data', nargs='+', choices=DATA, metavar='DATA', help=', '.join(DATA))
    commands.add_parser('list', parents=[chosen], help="a line each, with the paper's figures")
    commands.add_parser('show', parents=[chosen], help='all that is known of each, as JSON')
    check = commands.add_parser(
        'check', parents=[chosen], help='parse, build, count norms, train a step and test a step, on synthetic images')
    check.add_argument('--jobs', type=int, default=os.cpu_count(), metavar='N', help='processes (default: %(default)s)')
    commands.add_parser('table', parents=[chosen], help='Markdown tables, those of configs/README.md')
    sweep = commands.add_parser(
        'sweep', help='train a config with each learning rate that the paper searched, and report the best',
        description='What was trained to its end is not trained again; what was interrupted goes on.')
    sweep.add_argument('name', metavar='NAME', help='config by name or path')
    sweep.add_argument('processes', type=int, metavar='NUM_PROCESSES', help='as for tools/dist_train.sh')
    sweep.add_argument('--work-dir', metavar='DIR', help='default: work_dirs/NAME_sweep')
    sweep.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='for every training')
    return parser.parse_args(argv)


def choose(zoo, args):
    """Return the entries (list[Model]) that the arguments ask for; ValueError if there are none."""
    unknown = [name for name in args.names if Path(name).stem not in zoo]
    if unknown:
        raise ValueError(f'{unknown[0]} is no config of the zoo: tools/zoo.py list shows those that are')
    names = {Path(name).stem for name in args.names} or zoo
    wanted = dict(paper=args.paper, mode=args.mode, data=args.data)
    found = [model for name, model in zoo.items() if name in names
             and all(values is None or getattr(model, key) in values for key, values in wanted.items())
             and (args.norm is None or any(_is_norm(model.norm, norm) for norm in args.norm))
             and (args.task is None or model.task.split()[0] in args.task)]
    if not found:
        norms = ', '.join(sorted({model.norm for model in zoo.values()}))
        raise ValueError(f'no config is all of that; --norm knows {norms}')
    return found


def _is_norm(norm, asked):
    return norm in (asked, f'Sync{asked}') or norm.startswith(f'{asked}-')


def show_list(models):
    """Print a line for each config."""
    from rich.console import Console
    from rich.table import Table

    table = Table('config', 'task', 'norm', 'mode', 'backbone', 'data', 'table', 'published', box=None)
    for model in models:
        rows = model.published or [None]
        for row in rows:
            table.add_row(model.config, model.task.split()[0], model.norm, model.mode, model.backbone, model.data,
                          row.table if row else '', row.headline if row else '')
    console = Console()
    if not console.is_terminal:
        console.width = 250
    console.print(table)


def show_models(models):
    """Print all that is known of the configs."""
    from dataclasses import asdict
    print(json.dumps([asdict(model) for model in models], indent=1, ensure_ascii=False))


def show_tables(models):
    """Print a Markdown table for each paper, with a line for each row of its tables."""
    import pandas as pd

    from mmnorm.report.tables import to_markdown
    from mmnorm.zoo import PAPERS

    for paper in PAPERS:
        lines = []
        for model in (model for model in models if model.paper == paper):
            link = f'[{model.name}]({Path(model.config).relative_to("configs")})'
            common = {'norm': model.norm, 'mode': model.mode, 'backbone': model.backbone, 'data': model.data,
                      'starts from': describe_start(model.pretrained)}
            for row in model.published or [None]:
                table = row.table.removeprefix(f'{paper} ') if row else 'none'
                figures = ', '.join(f'{key} {value:g}' for key, value in row.metrics.items()) if row else ''
                where = f'{row.row} ({row.data})' if row else ''
                lines.append(common | {'config': link, 'in the paper': table, 'row': where, 'published': figures})
        if lines:
            print(f'## {paper}\n\n{to_markdown(pd.DataFrame(lines).set_index("config"), "left")}\n')


def describe_start(pretrained):
    """Say where a config's weights come from, with their licence, or what to do without."""
    if not pretrained:
        return 'random weights'
    more = pretrained.get('Licence') or pretrained['Instead']
    return f'{pretrained["Source"]} ({more})'


def check(models, jobs):
    """Check configs, each process one at a time; returns the exit status."""
    from mmnorm.zoo.check import check_model

    failed = 0
    with ProcessPoolExecutor(jobs, get_context('spawn'), _start_worker, (os.getpid(), )) as pool:
        pending = [pool.submit(check_model, model) for model in models]
        for done, future in enumerate(as_completed(pending), start=1):
            found = future.result()
            failed += bool(found.problems)
            print(f'[{done}/{len(models)}] {found.name}: {"; ".join(found.problems) or "as its entry says"} '
                  f'({found.seconds:.1f} s)', flush=True)
    print(f'{len(models) - failed} of {len(models)} configs are what their entries say')
    return int(failed > 0)


def _start_worker(parent):
    import torch

    from mmnorm.engine import end_with_parent
    end_with_parent(parent)
    torch.set_num_threads(1)


def sweep(model, args):
    """Train a config once for each value of its searched option; returns the exit status of the first that fails."""
    if not model.sweep:
        raise ValueError(f'{model.name} has no search in its paper; those that have: Table 6 of xbn')
    from mmnorm.engine import write_json
    from mmnorm.report import load_run

    (option, values), = model.sweep.items()
    folder = Path(args.work_dir or f'work_dirs/{model.name}_sweep')
    results = {}
    for value in values:
        work_dir = folder / f'{option.rpartition(".")[2]}_{value}'
        if not _finished(work_dir):
            command = [ROOT / 'tools/dist_train.sh', model.path, args.processes, '--work-dir', work_dir, '--resume',
                       '--cfg-options', f'{option}={value}', *args.cfg_options]
            status = subprocess.run([str(part) for part in command]).returncode
            if status:
                return status
        results[value] = load_run(work_dir).val.iloc[-1].dropna().to_dict()
    metric = next(iter(model.published[0].metrics))
    if not any(metric in found for found in results.values()):
        raise ValueError(f'no training under {folder} has {metric}: see their logs')
    best = max(results, key=lambda value: results[value].get(metric, float('-inf')))
    write_json(folder / 'sweep.json', dict(config=model.config, option=option, metric=metric, best=best,
                                           results=results))
    for value, found in results.items():
        print(f'{option} {value}: {metric} {found.get(metric)}{", the best" if value == best else ""}')
    print(f'published: {", ".join(row.headline for row in model.published)}\n{folder / "sweep.json"}')
    return 0


def _finished(work_dir):
    record = work_dir / 'run.json'
    return record.is_file() and bool(json.loads(record.read_text()).get('finished'))


def main(argv=None):
    """Run a command and return the exit status: 2 after a user's mistake, which is told in one line."""
    try:
        args = parse_args(argv)
        from mmnorm.zoo import find_model, load_zoo

        zoo = load_zoo()
        if args.command == 'sweep':
            model = find_model(args.name, zoo)
            if model is None:
                raise ValueError(f'{args.name} is no config of the zoo')
            return sweep(model, args)
        models = choose(zoo, args)
        if args.command == 'check':
            return check(models, args.jobs)
        return dict(list=show_list, show=show_models, table=show_tables)[args.command](models)
    except (ImportError, OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
