"""List the configs of the papers' tables, show what a paper says about one, check them, or search a learning rate."""

import argparse
import json
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from operator import eq
from pathlib import Path

from .arguments import key_value, positive
from .chain import draw_chain, finished
from .launch import train
from .light import light

EXAMPLE = 'mmnorm zoo list --norm SN --task semantic'


def add_arguments(parser):
    rows = light('zoo.rows')
    commands = parser.add_subparsers(dest='command', required=True)
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument('names', nargs='*', metavar='NAME', help='configs by name or path (default: all)')
    chosen.add_argument(
        '--paper',
        nargs='+',
        type=any_case(rows.PAPERS),
        choices=rows.PAPERS,
        metavar='PAPER',
        help=', '.join(rows.PAPERS),
    )
    chosen.add_argument(
        '--norm', nargs='+', metavar='NORM', help='SN (SyncSN as well), RBN, XBN (any; or XBN-GN), BN, GN, ...'
    )
    tasks = any_case(rows.TASKS, detection=rows.TASKS[0], **{task.split()[0]: task for task in rows.TASKS})
    chosen.add_argument(
        '--task',
        nargs='+',
        type=tasks,
        choices=rows.TASKS,
        metavar='TASK',
        help='detection (of objects), instance, panoptic or semantic (segmentation), classification',
    )
    chosen.add_argument(
        '--mode',
        nargs='+',
        type=any_case(rows.MODES),
        choices=rows.MODES,
        metavar='MODE',
        help='frozen: pretrained, BNs fixed; live: pretrained, norms train; scratch',
    )
    chosen.add_argument(
        '--data', nargs='+', type=any_case(rows.DATA), choices=rows.DATA, metavar='DATA', help=', '.join(rows.DATA)
    )
    commands.add_parser(
        'list',
        parents=[chosen],
        help="one line per config, with the paper's figures",
        epilog='example: mmnorm zoo list --norm SN --task semantic',
    )
    commands.add_parser(
        'show',
        parents=[chosen],
        help='everything known about each config, as JSON',
        epilog='example: mmnorm zoo show mask_rcnn_xbn_r50',
    )
    check = commands.add_parser(
        'check',
        parents=[chosen],
        help='parse, build, count norms, train a step and test a step, on synthetic images',
        epilog='example: mmnorm zoo check --paper xbn --jobs 2',
    )
    check.add_argument(
        '--jobs', type=positive, default=os.cpu_count(), metavar='N', help='processes (default: %(default)s)'
    )
    table = commands.add_parser(
        'table',
        parents=[chosen],
        help="Markdown tables, the papers' pages of configs",
        epilog='example: mmnorm zoo table --write',
    )
    table.add_argument('--write', action='store_true', help='write the pages and configs/README.md, for all configs')
    sweep = commands.add_parser(
        'sweep',
        help='train a config with each learning rate that the paper searched, and report the best',
        description='Finished trainings are not repeated; those that were interrupted or failed continue.',
        epilog='example: mmnorm zoo sweep faster_rcnn_bn_r50_scratch_8x2 8',
    )
    sweep.add_argument('name', metavar='NAME', help='config by name or path')
    sweep.add_argument('processes', type=positive, metavar='NUM_PROCESSES', help='per training, on this machine')
    sweep.add_argument('--work-dir', metavar='DIR', help='default: work_dirs/NAME_sweep')
    sweep.add_argument(
        '--cfg-options',
        nargs='+',
        type=key_value,
        default=[],
        metavar='KEY=VALUE',
        help='override config values in every training',
    )


def any_case(values, **names):
    """Return a type for argparse: one of some values, in upper or lower case or by another name."""
    known = {value.lower(): value for value in values} | names
    return lambda text: known.get(text.lower(), text)


def find(name, zoo):
    """Return the entry (Model) of a config's name, or of the path of its file; ValueError if the zoo has none."""
    model = zoo.get(Path(name).stem)
    if model is None:
        raise ValueError(f'{name} is not a config of the zoo: {light("terminal").command("zoo")} list shows them all')
    if name != model.name:  # a path, as the user sees it or as `list` prints it
        files = [path for path in (Path(name), light('zoo.rows').HOME / name) if path.is_file()]
        if not files:
            raise ValueError(f'{name} does not exist: use {model.config}, or {model.name} for short')
        if not any(path.samefile(model.path) for path in files):
            raise ValueError(
                f'{name} is not the {model.name} of the zoo, which is {model.config}: this tool takes '
                f'only configs of the zoo; {light("terminal").command("train")} trains any config'
            )
    return model


def choose(zoo, args):
    """Return the entries (list[Model]) that the arguments ask for; ValueError if there are none."""
    norms = {model.norm for model in zoo.values()}
    for norm in args.norm or ():
        if not any(is_norm(known, norm) for known in norms):
            raise ValueError(f'--norm {norm} has no config; choose one of {", ".join(sorted(norms))}')
    passed = {}  # by what the user asked for, the names of the configs that are it
    if args.names:
        passed[' '.join(args.names)] = {find(name, zoo).name for name in args.names}
    for key in ('paper', 'norm', 'task', 'mode', 'data'):
        asked, same = getattr(args, key), is_norm if key == 'norm' else eq
        if asked:
            passed[f'--{key} {" ".join(asked)}'] = {
                name for name, model in zoo.items() if any(same(getattr(model, key), value) for value in asked)
            }
    found = [model for name, model in zoo.items() if all(name in names for names in passed.values())]
    if not found:
        rest = {
            left_out: set(zoo).intersection(*(names for text, names in passed.items() if text != left_out))
            for left_out in passed
        }
        hints = [f'{len(names)} without {left_out}' for left_out, names in rest.items() if names]
        raise ValueError(f'no config matches {" and ".join(passed)}{"; there are " * bool(hints)}{", ".join(hints)}')
    return found


def is_norm(norm, asked):
    """Whether an entry's norm is what the user calls it: SyncSN is SN as well, XBN-GN is XBN."""
    norm, asked = norm.lower(), asked.lower()
    return norm in (asked, f'sync{asked}') or norm.startswith(f'{asked}-')


def show_list(models):
    """Print a line for each config."""
    from rich.console import Console
    from rich.table import Table

    table = Table('config', 'task', 'norm', 'mode', 'backbone', 'data', 'table', 'published', box=None)
    for model in models:
        rows = model.published or [None]
        for row in rows:
            table.add_row(
                model.config,
                model.task.split()[0],
                model.norm,
                model.mode,
                model.backbone,
                model.data,
                row.table if row else '',
                row.headline if row else '',
            )
    Console(width=250).print(table)  # in a narrow terminal rich would cut the names that other commands take


def show_models(models):
    """Print all that is known of the configs, with the commands from weights to report and what is there of them."""
    from dataclasses import asdict

    known = [asdict(model) | dict(chain=draw_chain(model)) for model in models]
    print(json.dumps(known, indent=1, ensure_ascii=False))


def show_pages(models, write):
    """Print the papers' pages of the configs, or write them, with configs/README.md, for all configs."""
    from mmnorm.zoo.pages import make_pages, write_pages

    if write:
        print('\n'.join(str(path.resolve()) for path in write_pages(models)))
    else:
        print('\n'.join(make_pages(models).values()))


def check(models, jobs):
    """Check configs, each process one at a time; returns the exit status."""
    from mmnorm.terminal import progress

    failed = 0
    with ProcessPoolExecutor(jobs, get_context('spawn'), _start_worker, (os.getpid(),)) as pool:
        pending = [pool.submit(_check_model, model) for model in models]
        try:
            for done, future in enumerate(progress(as_completed(pending), 'checking', len(models)), start=1):
                found = future.result()
                failed += bool(found.problems)
                print(
                    f'[{done}/{len(models)}] {found.name}: {"; ".join(found.problems) or "as its entry says"} '
                    f'({found.seconds:.1f} s)',
                    flush=True,
                )
        except KeyboardInterrupt:
            for process in active_children():  # nobody waits for what they were doing
                process.kill()
            raise
    print(f'{len(models) - failed} of {len(models)} configs match their entries')
    return int(failed > 0)


_NETWORKS = {}  # what this worker has found of networks


def _check_model(model):
    from mmnorm.zoo.check import check_model

    return check_model(model, _NETWORKS)


def _start_worker(parent):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered by the process that ends them
    import torch

    from mmnorm.engine import end_with_parent

    end_with_parent(parent)
    torch.set_num_threads(1)


def sweep(model, args):
    """Train a config once for each value of its searched option; returns the exit status, 1 if a training failed."""
    from mmnorm.files import check_writable, write_json
    from mmnorm.report import load_run

    ((option, values),) = model.sweep.items()
    folder = Path(args.work_dir or f'work_dirs/{model.name}_sweep')
    check_writable(folder)
    metric = next(iter(model.published[0].metrics))
    work_dirs = {value: folder / f'{option.rpartition(".")[2]}_{value}' for value in values}
    results, failed = {}, {}
    for value, work_dir in work_dirs.items():
        if not finished(work_dir):
            status = train(model.path, work_dir, args.processes, [f'{option}={value}', *args.cfg_options])
            if status:  # which says nothing of the other values
                failed[value] = status
                continue
        val = load_run(work_dir).val  # without metrics where nothing was detected
        results[value] = {} if val.empty else val.iloc[-1].dropna().to_dict()
    with_metric = {value: found[metric] for value, found in results.items() if metric in found}
    best = max(with_metric, key=with_metric.get, default=None)
    folder.mkdir(parents=True, exist_ok=True)  # no training has made it if all failed before they began
    write_json(
        folder / 'sweep.json',
        dict(config=model.config, option=option, metric=metric, best=best, results=results, failed=failed),
    )
    for value, work_dir in work_dirs.items():
        if value in failed:
            found = f'its training failed with exit status {failed[value]}, see {work_dir}'
        elif value not in with_metric:
            found = f'no {metric} in its last validation, see {work_dir}'
        else:
            found = f'{metric} {with_metric[value]}{", the best" if value == best else ""}'
        print(f'{option} {value}: {found}')
    print(f'published: {", ".join(row.headline for row in model.published)}\n{folder / "sweep.json"}')
    if failed:
        print(f'{len(failed)} of {len(values)} trainings failed; the same command continues them', file=sys.stderr)
    return int(bool(failed) or best is None)


def run(args):
    """Run a command on the configs that the arguments choose."""
    broken_pipe = signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `mmnorm zoo show | head` ends in silence
    try:
        zoo = light('zoo.rows').load_zoo()
        if args.command == 'sweep':
            model = find(args.name, zoo)
            if not model.sweep:
                tables = dict.fromkeys(row.table for other in zoo.values() if other.sweep for row in other.published)
                raise ValueError(f'{model.name} has no search in its paper; these tables have one: {", ".join(tables)}')
            return sweep(model, args)
        models = choose(zoo, args)
        if args.command == 'table':
            if args.write and len(models) < len(zoo):
                raise ValueError('--write writes the pages of all configs: leave out names and filters')
            return show_pages(models, args.write)
        if args.command == 'check':
            return check(models, args.jobs)
        return dict(list=show_list, show=show_models)[args.command](models)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*['the same command continues'] * (args.command == 'sweep')) from None
    finally:
        sys.stdout.flush()
        signal.signal(signal.SIGPIPE, broken_pipe)
