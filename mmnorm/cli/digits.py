"""Make the digits data set: handwritten digits on photographs, in the layouts of COCO, ADE20K and Cityscapes."""

from dataclasses import asdict
from pathlib import Path

from .light import light

EXAMPLE = """mmnorm digits data/digits
  mmnorm digits data/digits_blur3 --corruption blur --severity 3"""


def add_arguments(parser):
    parser.set_defaults(**asdict(light('data.options').DigitsOptions()))
    parser.add_argument('root', nargs='?', default='data/digits', type=Path, help='folder to write (%(default)s)')
    parser.add_argument('--train', dest='num_train', type=int, metavar='N', help='training images (%(default)s)')
    parser.add_argument('--val', dest='num_val', type=int, metavar='N', help='validation images (%(default)s)')
    parser.add_argument('--image-size', type=int, metavar='PIXELS', help='side of the images (%(default)s)')
    parser.add_argument(
        '--digits-per-image',
        type=int,
        nargs=2,
        metavar=('LO', 'HI'),
        help='fewest and most digits in an image %(default)s',
    )
    parser.add_argument(
        '--digit-size',
        type=int,
        nargs=2,
        metavar=('LO', 'HI'),
        help="range of a digit's longer side in pixels %(default)s",
    )
    parser.add_argument('--seed', type=int, metavar='N', help='random seed (%(default)s)')
    parser.add_argument(
        '--corruption', metavar='NAME', help='corrupt the validation images: noise, blur or contrast (%(default)s)'
    )
    parser.add_argument('--severity', type=int, metavar='N', help='severity of the corruption, 0 to 5 (%(default)s)')
    parser.add_argument('--layouts', nargs='+', metavar='NAME', help='layouts to write, out of %(default)s')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace a data set that this tool made earlier with other options'
    )


def run(args):
    """Make it."""
    from mmnorm.data import DigitsOptions, make_digits

    options = DigitsOptions(**{name: getattr(args, name) for name in asdict(DigitsOptions())})
    try:
        written = make_digits(args.root, options, overwrite=args.overwrite)
    except KeyboardInterrupt:
        raise KeyboardInterrupt('nothing was written') from None
    print(f'{args.root}: written' if written else f'{args.root}: already there, made with the same options')
