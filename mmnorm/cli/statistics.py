"""The BN statistics of a trained network, one step at a time; mmnorm diagnose runs them all and says what to do.

  shift      measure how far running statistics are from those of the test images (paper xbn, Definitions 1 and 2)
  recollect  replace them with those of some batches: sn's batch average, precise BN; AdaBN with --data test
  evalnorm   turn BNs into EN and estimate alpha and beta, or set the rule (paper evalnorm, Section 3.4)
  perturb    evaluate with noise on the first BNs of the first residual blocks (paper xbn, Eq. 5, Figures 8 and A9)

Works with any config and checkpoint of mmdet, mmseg or mmpretrain; on several processes with --processes.
"""

from pathlib import Path

from .arguments import add_run_arguments, positive

EXAMPLE = 'mmnorm statistics recollect CONFIG CHECKPOINT --out NEW.pth'


def add_arguments(parser):
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def add(step, out, suffix):
        options = f' --out NEW{suffix}' if suffix == '.pth' else ''
        command = commands.add_parser(
            step.__name__,
            help=step.__doc__,
            description=step.__doc__,
            epilog=f'example: mmnorm statistics {step.__name__} CONFIG CHECKPOINT{options}',
        )
        add_run_arguments(command)
        command.add_argument('checkpoint', help='checkpoint file; it is never changed')
        command.add_argument('--out', required=suffix == '.pth', metavar=f'FILE{suffix}', help=out)
        command.add_argument('--seed', type=int, default=0, help='random seed (default: %(default)s)')
        command.set_defaults(step=step, batch_size=None)
        return command

    def add_training_images(command):
        command.add_argument(
            '--batches',
            type=positive,
            default=200,
            metavar='N',
            help='training batches per process (default: %(default)s)',
        )
        command.add_argument(
            '--batch-size',
            type=positive,
            metavar='N',
            help='images per training batch, if the training did not use the number in the config',
        )

    add(shift, 'default: shift.json in WORK_DIR', '.json')
    command = add(recollect, 'the new checkpoint', '.pth')
    add_training_images(command)
    command.add_argument(
        '--data',
        choices=['train', 'test'],
        default='train',
        help='images to take statistics from; test images make this AdaBN (default: %(default)s)',
    )
    command.add_argument(
        '--average',
        action='store_true',
        help='average the variances of the batches, as in the text of sn, instead of pooling',
    )
    command.add_argument('--all', action='store_true', help='include layers whose statistics were fixed in training')
    command = add(evalnorm, 'the new checkpoint; its config is written beside it, ending in .py', '.pth')
    add_training_images(command)
    command.add_argument(
        '--mode',
        choices=['offline', 'rule', 'simple'],
        default='offline',
        help='alpha and beta: estimated, 1 / B^2, or 1 / B (default: %(default)s)',
    )
    command = add(perturb, 'default: perturb.json in WORK_DIR; a plot is drawn beside it', '.json')
    command.add_argument(
        '--blocks',
        type=positive,
        nargs='+',
        default=[1, 6, 13],
        metavar='N',
        help='disturb the first N blocks (default: 1 6 13)',
    )
    command.add_argument(
        '--deltas',
        type=float,
        nargs='+',
        default=[0, 0.1, 0.2, 0.3, 0.4, 0.5],
        metavar='DELTA',
        help='noise magnitudes, from 0 to 1 (default: 0 0.1 ... 0.5)',
    )
    command.add_argument('--noises', type=positive, default=5, metavar='N', help='noise seeds (default: %(default)s)')


def shift(args, evaluation, original):
    """Measure the estimation shift of every norm layer while the test set is evaluated."""
    from mmnorm import engine, statistics
    from mmnorm.engine.recommend import recommend_levels

    with statistics.collect_moments(evaluation.model) as collected:
        metrics = evaluation.evaluate()
    shifts = statistics.estimation_shift(evaluation.model, collected)
    if engine.on_first_rank():
        print(f'{"layer":50s}{"ESM mu":>10s}{"ESM sigma":>12s}{"rel. mu":>10s}{"rel. sigma":>12s}')
        for name, of_layer in shifts.items():
            _print_shift(name, of_layer)
            for call, of_call in enumerate(of_layer.calls, 1):
                _print_shift(f'  call {call} of {len(of_layer.calls)}', of_call)
        found = {
            name: of_layer.figures | dict(calls=[call.figures for call in of_layer.calls])
            for name, of_layer in shifts.items()
        }
        by_batch = statistics.trained_by_batch(evaluation.network)
        advice = recommend_levels([dict(found[name], name=name) for name in by_batch if name in found], args.checkpoint)
        if advice:
            print(advice)
        write(args, evaluation, dict(metrics=metrics, layers=found, levels=advice))


def _print_shift(title, shift):
    print(
        f'{title:50s}{shift.esm_mu:10.3f}{shift.esm_sigma:12.3f}{shift.relative_mu:10.3f}{shift.relative_sigma:12.3f}'
    )


def recollect(args, evaluation, original):
    """Replace running statistics with those of training batches (or of test batches: AdaBN), with frozen weights."""
    from mmnorm import engine, statistics
    from mmnorm.openmmlab.batches import training_forward

    engine.check_free(args.out)
    by_batch = statistics.trained_by_batch(evaluation.network)
    if not by_batch and not args.all:
        raise ValueError(
            'training held all running statistics fixed (norm_eval=True, frozen stages or frozen norms): '
            'new ones would change the function that was trained; pass --all to replace them anyway'
        )
    if args.data == 'test':
        batches = evaluation.test_batches(args.batches, batch_size=evaluation.batch_size)
        forward = lambda model, batch: model.test_step(batch)  # noqa: E731
    else:
        batches, forward = evaluation.training_batches(args.batches), training_forward
    found = statistics.recollect(evaluation.model, batches, forward, None if args.all else by_batch, not args.average)
    if engine.on_first_rank():
        note = dict(
            repair='recollect',
            of=args.checkpoint,
            data=args.data,
            batches=args.batches,
            seed=args.seed,
            pooled=not args.average,
        )
        print(f'{len(found)} layers have new running statistics')
        print(*engine.save_network(evaluation.network.state_dict(), evaluation.loaded, args.out, note), sep='\n')


def evalnorm(args, evaluation, original):
    """Turn BNs into EN, with alpha and beta estimated on training batches or set by the rule."""
    from mmengine.registry import MODELS

    from mmnorm import engine, statistics
    from mmnorm.norms import estimate_offline
    from mmnorm.openmmlab.batches import training_forward
    from mmnorm.openmmlab.configs import evalnorm_config

    engine.check_free(args.out, with_config=True)
    statistics.to_evalnorm(evaluation.network)
    cfg, network = evalnorm_config(original, evaluation.network, MODELS.build)  # or told before estimation
    values = estimate_offline(evaluation.model, evaluation.training_batches(args.batches), training_forward)
    if args.mode != 'offline':
        sizes = statistics.apply_rule(evaluation.network, power=2 if args.mode == 'rule' else 1)
        values = {name: (size,) for name, size in sizes.items()}
    if engine.on_first_rank():
        what = 'alpha and beta' if args.mode == 'offline' else 'normalization batch size'
        print(f'{what} of {len(values)} layers:')
        for name, of_layer in values.items():
            print(f'{name:50s}' + ''.join(f'{value:10.3f}' for value in of_layer))
        network.load_state_dict(evaluation.network.state_dict())
        note = dict(repair=f'evalnorm_{args.mode}', of=args.checkpoint, batches=args.batches, seed=args.seed)
        print(*engine.save_network(network.state_dict(), evaluation.loaded, args.out, note, cfg), sep='\n')


def perturb(args, evaluation, original):
    """Evaluate with noise on the statistics of the first BN of each of the first residual blocks."""
    from mmnorm import engine, statistics
    from mmnorm.engine.recommend import headline

    disturbed = {
        blocks: statistics.first_norms(getattr(evaluation.network, 'backbone', evaluation.network), blocks)
        for blocks in args.blocks
    }
    for delta in args.deltas:
        with statistics.perturbed([], delta):  # to be told of a wrong magnitude before the first evaluation
            pass
    curves = []
    for blocks, layers in disturbed.items():
        for delta in args.deltas:
            of_seeds = []
            for seed in range(args.seed, args.seed + (args.noises if delta else 1)):
                with statistics.perturbed(layers.values(), delta, seed):
                    of_seeds.append(headline(evaluation.evaluate(f'{blocks} blocks, delta {delta}, seed {seed}')))
            curves.append(dict(blocks=blocks, delta=delta, metrics=of_seeds))
            if engine.on_first_rank():
                # a network that detects nothing has no figures: 0
                means = {
                    key: sum(found.get(key, 0.0) for found in of_seeds) / len(of_seeds)
                    for key in set().union(*of_seeds)
                }
                print(
                    f'first {blocks} blocks, delta {delta}: '
                    + ', '.join(f'{key} {value:.1f}' for key, value in means.items()),
                    flush=True,
                )
    if engine.on_first_rank():
        from mmnorm.report import draw_perturbation  # so late that the rest needs no report packages

        keys = set().union(*(found for curve in curves for found in curve['metrics']))
        for curve in curves:
            curve['metrics'] = [{key: found.get(key, 0.0) for key in sorted(keys)} for found in curve['metrics']]
        write(args, evaluation, dict(first_seed=args.seed, curves=curves), {'.svg': draw_perturbation(curves)})


def write(args, evaluation, found, beside=None):
    """Write what was found, with what it was found on, and files beside it (by suffix), and say where."""
    from mmnorm import engine
    from mmnorm.files import as_json, write_together

    path = target(args, evaluation)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = dict(
        config=args.config, checkpoint=args.checkpoint, device=engine.describe_device(), versions=engine.versions()
    )
    contents = {path: as_json(dict(about, **found))}
    contents |= {path.with_suffix(suffix): content for suffix, content in (beside or {}).items()}
    write_together(contents)
    print(*contents, sep='\n')


def target(args, evaluation):
    """The file that a step writes."""
    return Path(args.out or Path(evaluation.work_dir, f'{args.command}.json'))


def splits_of(args):
    """Data sets that a command reads; AdaBN normalizes batches of the training's size, of test images."""
    if args.command in ('shift', 'perturb'):
        return ('test',)
    return ('train', 'test')


def run(args):
    """Do one step."""
    from mmnorm import engine
    from mmnorm.files import check_writable

    evaluation, original = engine.open_evaluation(args, splits_of(args))
    if engine.on_first_rank():
        print(*evaluation.notes, sep='\n', end='\n' * bool(evaluation.notes))
    check_writable(target(args, evaluation).parent)
    args.step(args, evaluation, original)
