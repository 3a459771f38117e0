"""What a digits data set may be: its options. Needs the standard library alone, for the help of the command."""

from collections.abc import Sequence
from dataclasses import dataclass

# Severity 1 to 5 of ImageNet-C (Hendrycks & Dietterich, ICLR 2019, the authors' code): the standard deviation of
# Gaussian noise on [0, 1], of a Gaussian blur in pixels of a 224 pixel image, and the contrast that is kept.
CORRUPTIONS = {
    'noise': (0.08, 0.12, 0.18, 0.26, 0.38),
    'blur': (1, 2, 3, 4, 6),
    'contrast': (0.4, 0.3, 0.2, 0.1, 0.05),
}

# Layout -> kind of file -> path of image `number` (counted from 1) of `split`; `folder` is ADE20K's name of the split,
# `digit` the class of the image where it has one.
LAYOUTS = {
    'coco': {
        'image': 'coco/{split}2017/{number:012d}.jpg',
        'instances': 'coco/annotations/instances_{split}2017.json',
    },
    'ade': {
        'image': 'ade/images/{folder}/ADE_{split}_{number:08d}.jpg',
        'map': 'ade/annotations/{folder}/ADE_{split}_{number:08d}.png',
    },
    'cityscapes': {
        'image': 'cityscapes/leftImg8bit/{split}/digits/digits_{number:06d}_000019_leftImg8bit.png',
        'map': 'cityscapes/gtFine/{split}/digits/digits_{number:06d}_000019_gtFine_labelTrainIds.png',
    },
    'panoptic': {
        'image': 'coco/{split}2017/{number:012d}.jpg',
        'segments': 'coco/annotations/panoptic_{split}2017.json',
        'map': 'coco/annotations/panoptic_{split}2017/{number:012d}.png',
    },
    'imagenet': {'image': '{split}/{digit}/{number:08d}.jpg'},
}
SCENES = tuple(layout for layout in LAYOUTS if layout != 'imagenet')  # of several digits, which share their images

#: The options of a data set for classification, where they are not those of scenes: a digit fills most of its image.
CLASSIFICATION = dict(
    num_train=6000, num_val=1000, image_size=32, digits_per_image=(1, 1), digit_size=(20, 30), layouts=('imagenet',)
)


@dataclass(frozen=True)
class DigitsOptions:
    """What ``make_digits`` draws.

    Args:
        num_train (int): Training images.
        num_val (int): Validation images.
        image_size (int): Side of the square images in pixels, at least 32.
        digits_per_image (tuple[int, int]): Fewest and most digits in an image.
        digit_size (tuple[int, int]): Shortest and longest longer side of a digit in pixels, its soft edge included,
            from 8 to ``image_size``.
        seed (int): Seed of everything random. Image i depends on the seed, the split and i, not on the counts.
        corruption (str, optional): 'noise', 'blur' or 'contrast', applied to the validation images only. The values
            are ImageNet-C's; the blur scales with ``image_size``.
        severity (int): Severity of the corruption, 0 (none) to 5.
        layouts (Sequence[str]): Layouts to write, out of 'coco', 'ade', 'cityscapes' and 'panoptic'; or 'imagenet'
            alone, of single digits, the classes in turn: ``DigitsOptions(**CLASSIFICATION)``.

    Raises:
        TypeError: A count or size is not an int, or a range not two of them.
        ValueError: A value is outside its range.
    """

    num_train: int = 2000
    num_val: int = 300
    image_size: int = 128
    digits_per_image: tuple[int, int] = (1, 4)
    digit_size: tuple[int, int] = (16, 77)
    seed: int = 0
    corruption: str | None = None
    severity: int = 0
    layouts: Sequence[str] = SCENES

    def __post_init__(self):
        _check_integer('num_train', self.num_train, 1)
        _check_integer('num_val', self.num_val, 1)
        _check_integer('image_size', self.image_size, 32)
        _check_integer('seed', self.seed, 0, 2**32 - 1)
        _check_integer('severity', self.severity, 0, 5)
        for name, low in (('digits_per_image', 1), ('digit_size', 8)):
            pair = getattr(self, name)
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise TypeError(f'{name}={pair!r}: expected two ints, (low, high)')
            for value in pair:
                _check_integer(name, value, low)
            if pair[0] > pair[1]:
                raise ValueError(f'{name}={pair}: expected (low, high) with low <= high')
            object.__setattr__(self, name, tuple(pair))  # a list out of JSON must equal the tuple it stands for
        if self.digit_size[1] > self.image_size:
            raise ValueError(
                f'digit_size={self.digit_size}: a digit of {self.digit_size[1]} pixels does not fit into '
                f'image_size={self.image_size}: lower the one or raise the other'
            )
        if self.corruption is not None and self.corruption not in CORRUPTIONS:
            raise ValueError(f'corruption={self.corruption!r}: choose from {", ".join(CORRUPTIONS)} or None')
        if self.severity and self.corruption is None:
            raise ValueError(f'severity={self.severity} needs a corruption: choose from {", ".join(CORRUPTIONS)}')
        if not self.layouts or not set(self.layouts) <= set(LAYOUTS):
            raise ValueError(f'layouts={self.layouts!r}: choose one or more from {tuple(LAYOUTS)}')
        object.__setattr__(self, 'layouts', tuple(layout for layout in LAYOUTS if layout in self.layouts))
        if 'imagenet' in self.layouts and (len(self.layouts) > 1 or self.digits_per_image != (1, 1)):
            raise ValueError(
                f'layouts={self.layouts} with digits_per_image={self.digits_per_image}: in the layout imagenet an '
                'image is of one class, so it takes digits_per_image=(1, 1) and no other layout beside it'
            )


def _check_integer(name, value, low, high=None):
    if not isinstance(value, int):
        raise TypeError(f'{name}={value!r}: expected an int, got {type(value).__name__}')
    if value < low or (high is not None and value > high):
        bound = f'at least {low}' if high is None else f'from {low} to {high}'
        raise ValueError(f'{name}={value}: must be {bound}')
