"""Make the digits data set: handwritten digits on photographs, in the layouts of COCO, ADE20K and Cityscapes; or, with
--layouts imagenet, one digit an image, for classification."""

from dataclasses import asdict
from pathlib import Path

from .light import light

EXAMPLE = """mmnorm digits data/digits
  mmnorm digits data/digits_imagenet --layouts imagenet
  mmnorm digits data/digits_blur3 --corruption blur --severity 3"""


def add_arguments(parser):
    options = light('data.options')
    scenes = options.DigitsOptions()

    def default(name):  # of an argument; where it is not given it is None, for it depends on the layout
        return f'{getattr(scenes, name)}; for imagenet {options.CLASSIFICATION[name]}'

    parser.add_argument('root', nargs='?', default='data/digits', type=Path, help='folder to write (%(default)s)')
    parser.add_argument(
        '--train', dest='num_train', type=int, metavar='N', help=f'training images ({default("num_train")})'
    )
    parser.add_argument(
        '--val', dest='num_val', type=int, metavar='N', help=f'validation images ({default("num_val")})'
    )
    parser.add_argument(
        '--image-size', type=int, metavar='PIXELS', help=f'side of the images ({default("image_size")})'
    )
    parser.add_argument(
        '--digits-per-image',
        type=int,
        nargs=2,
        metavar=('LO', 'HI'),
        help=f'fewest and most digits in an image ({default("digits_per_image")})',
    )
    parser.add_argument(
        '--digit-size',
        type=int,
        nargs=2,
        metavar=('LO', 'HI'),
        help=f"range of a digit's longer side in pixels ({default('digit_size')})",
    )
    parser.add_argument('--seed', type=int, metavar='N', help=f'random seed ({scenes.seed})')
    parser.add_argument(
        '--corruption', metavar='NAME', help='corrupt the validation images: noise, blur or contrast (none)'
    )
    parser.add_argument('--severity', type=int, metavar='N', help='severity of the corruption, 0 to 5 (0)')
    parser.add_argument(
        '--layouts',
        nargs='+',
        metavar='NAME',
        help=f'layouts to write, out of {", ".join(options.SCENES)} (all of them), or imagenet alone',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace a data set that this tool made earlier with other options'
    )


def run(args):
    """Make it."""
    from mmnorm.data import CLASSIFICATION, DigitsOptions, make_digits

    of_layout = CLASSIFICATION if args.layouts == ['imagenet'] else {}
    given = {name: getattr(args, name) for name in asdict(DigitsOptions()) if getattr(args, name) is not None}
    try:
        written = make_digits(args.root, DigitsOptions(**of_layout | given), overwrite=args.overwrite)
    except KeyboardInterrupt:
        raise KeyboardInterrupt('nothing was written') from None
    print(f'{args.root}: written' if written else f'{args.root}: already there, made with the same options')
