"""Check the data sets of a config of mmdet, mmseg or mmpretrain, as train, test and diagnose do before they start.

Annotation files in COCO's format: JSON, ids, categories and the config's classes, boxes, masks, images that exist.
Folders for semantic segmentation: images without label maps, and the values of some maps. Images by class: folders,
lists, labels, the number of classes, and some images. Exit status 2 if there are errors, by which a run fails or does
something else than is meant; warnings are what may be as it should.
"""

from pathlib import Path

from .arguments import add_config_arguments, positive
from .light import light

EXAMPLE = 'mmnorm check-data CONFIG --out data.json'
SPLITS = ('train', 'val', 'test')


def add_arguments(parser):
    add_config_arguments(parser)
    parser.add_argument('--splits', nargs='+', choices=SPLITS, default=SPLITS, help='what to check (default: all)')
    parser.add_argument(
        '--maps',
        type=positive,
        default=50,
        metavar='N',
        help='label maps (semantic segmentation) or images (classification) to read of each set (default: %(default)s)',
    )
    parser.add_argument('--out', metavar='FILE', help='also write what was found, as JSON')


def run(args):
    """Check, print what was found, and return the exit status."""
    from mmnorm.engine import parse_config
    from mmnorm.engine.check_data import check_data, lines
    from mmnorm.engine.findings import ERROR, WARNING
    from mmnorm.engine.preflight import missing_data
    from mmnorm.engine.settings import merge_options, wrong_kinds
    from mmnorm.files import write_json

    if args.out and not Path(args.out).resolve().parent.is_dir():
        raise ValueError(f'--out {args.out}: there is no folder {Path(args.out).parent}')
    if args.out and Path(args.out).is_dir():
        raise ValueError(f'--out {args.out} is a folder, not a file')
    cfg = parse_config(args.config)
    merge_options(cfg, args.cfg_options)
    wrong = wrong_kinds(cfg)
    if wrong:
        raise ValueError('\n'.join(f'{args.config}: {message}' for message in wrong))
    splits = [split for split in args.splits if cfg.get(f'{split}_dataloader')]
    if not splits:
        raise ValueError(f'{args.config} has no {" and no ".join(f"{split}_dataloader" for split in args.splits)}')
    missing = {path: split for split in reversed(splits) for path in missing_data(cfg[f'{split}_dataloader'])}
    checks = check_data(cfg, [split for split in splits if split not in missing.values()], args.maps, print)
    errors = [f'{path} of {split}_dataloader does not exist' for path, split in missing.items()] + lines(checks, ERROR)
    warnings = lines(checks, WARNING)
    printable = light('terminal').printable
    for check in checks:
        images = f': {len(check.images):,} images' * bool(check.images)
        skipped = f': not checked, {check.skipped}' * bool(check.skipped)
        print(printable(f'{check.split}: {check.kind} {check.path}{images}{skipped}'))
    for title, found in (('error', errors), ('warning', warnings)):
        for line in found:
            print(printable(f'{title}: {line}'))
    print(f'{len(errors)} errors, {len(warnings)} warnings')
    if args.out:
        write_json(
            args.out,
            dict(
                config=args.config,
                errors=errors,
                warnings=warnings,
                data=[
                    dict(
                        split=check.split,
                        type=check.kind,
                        path=check.path,
                        images=len(check.images),
                        skipped=check.skipped or None,
                        findings=check.findings.plain(),
                    )
                    for check in checks
                ],
            ),
        )
        print(args.out)
    return 2 if errors else 0
