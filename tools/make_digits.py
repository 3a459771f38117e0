"""Make the digits data set: handwritten digits on photographs, in the layouts of COCO, ADE20K and Cityscapes.

    python tools/make_digits.py data/digits
    python tools/make_digits.py data/digits_blur3 --corruption blur --severity 3
"""
import argparse
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing


def parse_args(defaults):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(**defaults)
    parser.add_argument('root', nargs='?', default='data/digits', type=Path, help='folder to make (%(default)s)')
    parser.add_argument('--train', dest='num_train', type=int, metavar='N', help='training images (%(default)s)')
    parser.add_argument('--val', dest='num_val', type=int, metavar='N', help='validation images (%(default)s)')
    parser.add_argument('--image-size', type=int, metavar='PIXELS', help='side of the images (%(default)s)')
    parser.add_argument(
        '--digits-per-image', type=int, nargs=2, metavar=('LO', 'HI'),
        help='fewest and most digits in an image %(default)s')
    parser.add_argument(
        '--digit-size', type=int, nargs=2, metavar=('LO', 'HI'),
        help="range of a digit's longer side in pixels %(default)s")
    parser.add_argument('--seed', type=int, metavar='N', help='seed of everything random (%(default)s)')
    parser.add_argument(
        '--corruption', metavar='NAME', help='corrupt the validation images: noise, blur or contrast (%(default)s)')
    parser.add_argument('--severity', type=int, metavar='N', help='severity of the corruption, 0 to 5 (%(default)s)')
    parser.add_argument('--layouts', nargs='+', metavar='NAME', help='layouts to write, out of %(default)s')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace a data set that this tool made earlier with other options')
    return parser.parse_args()


def main():
    try:
        from mmnorm.data import DigitsOptions, make_digits
        options = vars(parse_args(asdict(DigitsOptions())))
        root, overwrite = options.pop('root'), options.pop('overwrite')
        written = make_digits(root, DigitsOptions(**options), overwrite=overwrite)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted: nothing was written', file=sys.stderr)
        return 130
    print(f'{root}: written' if written else f'{root}: already there, made with the same options')
    return 0


if __name__ == '__main__':
    sys.exit(main())
