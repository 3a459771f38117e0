"""Digits on photographs: a small data set for classification, detection and segmentation that needs no download.

scikit-learn carries 1,797 handwritten digits (8 x 8 scans) and two photographs. ``make_digits`` enlarges, turns and
colors the scans, lays them over random crops of the photographs and writes the result in the layouts of COCO
(instances and panoptic), ADE20K and Cityscapes, or, one digit an image, of ImageNet, so that existing configs of
mmdetection, mmsegmentation and mmpretrain can read it.

From top to bottom: the options, the material of a split, drawing one image, the layouts on disk, ``make_digits``.
"""

import json
import os
import platform
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmnorm import __version__
from mmnorm.files import making_folder, take_place
from mmnorm.terminal import progress

from .options import CORRUPTIONS, LAYOUTS, DigitsOptions

try:
    from PIL import Image, ImageFilter, ImageOps
    from pycocotools import mask as rle
    from sklearn.datasets import load_digits, load_sample_images
    from sklearn.model_selection import train_test_split
except ImportError as error:
    raise ImportError(f"the digits data set needs {error.name}: pip install 'mmnorm[demo]'") from error

SPLITS = ('train', 'val')
DIGITS = tuple('0123456789')
PHOTOS = ('temple', 'flower')  # what scikit-learn's photographs show

MANIFEST = 'digits.json'
FORMAT = 1  # raise it whenever the same options would give other files

VAL_FRACTION = 1 / 4  # of the scans
VAL_COLUMN = 2 / 3  # of a photograph's width: train crops lie left of it, val crops right of it
CROP_SIDE = (96, 213)  # pixels of a photograph; the val part of one is 213 wide
MAX_ANGLE = 15  # degrees, either way
OPACITY = (0.85, 1.0)
MIN_VISIBLE = 0.8  # of a digit's area, whatever later digits hide
MAX_TRIES = 100  # to place one digit


def load_scans(split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Load the scans of one split, which share no scan and the same proportion of every class.

    The 13 writers are not told apart: both splits know them all.

    Returns:
        tuple: Scans (N, 10, 10) uint8, 255 for full ink, with an empty margin of one point; labels (N,) in 0..9.
    """
    digits = load_digits()
    scans = np.pad((digits.images * 255 / 16).astype(np.uint8), ((0, 0), (1, 1), (1, 1)))
    train_scans, val_scans, train_labels, val_labels = train_test_split(
        scans, digits.target, test_size=VAL_FRACTION, stratify=digits.target, random_state=seed
    )
    return (train_scans, train_labels) if split == 'train' else (val_scans, val_labels)


def load_photos(split: str) -> list[Image.Image]:
    """Load the part of each photograph that belongs to a split: the left two thirds for train, the right for val."""
    photos = []
    for photo in load_sample_images().images:
        column = round(VAL_COLUMN * photo.shape[1])
        photos.append(Image.fromarray(photo[:, :column] if split == 'train' else photo[:, column:]))
    return photos


class Sample(NamedTuple):
    """One image and its ground truth, in the order in which the digits were laid down."""

    image: np.ndarray  # (H, W, 3) uint8, RGB
    labels: np.ndarray  # (N,) int, the digits
    masks: np.ndarray  # (N, H, W) bool, the visible part of each digit; no two overlap
    rim: np.ndarray  # (H, W) bool, in no mask, but blended with a digit's soft edge: neither digit nor background
    photo: int  # which photograph is behind the digits, an index into PHOTOS

    @property
    def background(self):
        """What is neither digit nor rim, (H, W) bool."""
        return ~(self.masks.any(0) | self.rim)


class DigitsPainter:
    """Draw the images of one split.

    Args:
        options (DigitsOptions): What to draw.
        split (str): 'train' or 'val'.
    """

    def __init__(self, options: DigitsOptions, split: str):
        self.options = options
        self.split = split
        self.scans, self.labels = load_scans(split, options.seed)
        self.photos = load_photos(split)

    def draw(self, index: int) -> Sample:
        """Draw image ``index`` (from 0) of the split.

        Raises:
            ValueError: The digits find no room in the image.
        """
        options = self.options
        rng = np.random.default_rng([options.seed, SPLITS.index(self.split), index])
        photo = int(rng.integers(len(self.photos)))
        image = self._background(rng, self.photos[photo])
        count = rng.integers(*options.digits_per_image, endpoint=True)
        scans = np.arange(len(self.scans))
        if 'imagenet' in options.layouts:
            scans = scans[self.labels == _digit(index + 1)]
        chosen = scans[rng.integers(len(scans), size=count)]
        masks = np.zeros((0, options.image_size, options.image_size), bool)
        areas = np.zeros(0)
        blended = np.zeros(masks.shape[1:], bool)
        for scan in self.scans[chosen]:
            coverage = self._place(rng, scan, masks, areas)
            mask = coverage >= 0.5
            color = _color(rng, np.asarray(image)[mask].mean(0))
            opacity = rng.uniform(*OPACITY)
            image.paste(color, mask=Image.fromarray((255 * opacity * coverage).astype(np.uint8)))
            masks = np.concatenate([masks & ~mask, mask[None]])
            areas = np.append(areas, mask.sum())
            blended |= coverage > 0
        image = np.asarray(image)
        if self.split == 'val' and options.severity:
            image = corrupt(image, options.corruption, options.severity, rng)
        return Sample(image, self.labels[chosen], masks, blended & ~masks.any(0), photo)

    def _background(self, rng, photo):
        """Crop a random square out of a photograph."""
        side = rng.uniform(*CROP_SIDE)
        left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
        size = (self.options.image_size,) * 2
        crop = photo.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        return ImageOps.mirror(crop) if rng.random() < 0.5 else crop

    def _place(self, rng, scan, masks, areas):
        """Return the coverage (H, W) in 0..1 of a scan at a random place that leaves enough of each earlier digit."""
        side = self.options.image_size
        for _ in range(MAX_TRIES):
            size = rng.integers(*self.options.digit_size, endpoint=True)
            digit = _enlarge(scan, size, rng.uniform(-MAX_ANGLE, MAX_ANGLE))
            height, width = digit.shape
            top, left = rng.integers((side - height, side - width), endpoint=True)
            coverage = np.zeros((side, side), np.float32)
            coverage[top : top + height, left : left + width] = digit
            if np.all((masks & (coverage < 0.5)).sum((1, 2)) >= MIN_VISIBLE * areas):
                return coverage
        raise ValueError(
            f'digits_per_image={self.options.digits_per_image} with digit_size={self.options.digit_size} '
            f'find no room in image_size={side}: take fewer or smaller digits, or larger images'
        )


def _enlarge(scan, size, angle):
    """Turn a scan by an angle in degrees and scale its longer side to size: coverage (H, W) float32 in 0..1."""
    # A scan's edge is about one of its points wide: steepen it, so that it is about two pixels wide at any size.
    gain = max(1.2, size / 16)
    image = Image.fromarray(scan).resize((40, 40), Image.Resampling.BICUBIC)
    image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    uncovered = int(255 * (0.5 - 0.5 / gain))
    image = image.crop(image.point([0] * uncovered + [255] * (256 - uncovered)).getbbox())
    scale = size / max(image.size)
    image = image.resize([max(1, round(scale * side)) for side in image.size], Image.Resampling.BICUBIC)
    return np.clip(0.5 + gain * (np.asarray(image, np.float32) / 255 - 0.5), 0, 1)


def _color(rng, background):
    """Choose a color that stands out: of three random ones the farthest from the background's, (3,) in 0..255."""
    colors = rng.integers(256, size=(3, 3))
    return tuple(colors[np.linalg.norm(colors - background, axis=1).argmax()].tolist())


def corrupt(image: np.ndarray, corruption: str, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Corrupt an image (H, W, 3) uint8 as ImageNet-C does, with severity 1 to 5 of ``CORRUPTIONS``."""
    level = CORRUPTIONS[corruption][severity - 1]
    if corruption == 'blur':
        return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(level * image.shape[0] / 224)))
    if corruption == 'noise':
        pixels = image + 255 * rng.normal(scale=level, size=image.shape)
    else:
        mean = image.mean((0, 1))
        pixels = mean + level * (image - mean)
    return pixels.round().clip(0, 255).astype(np.uint8)


def _path(layout, kind, split, number=1):
    folder = {'train': 'training', 'val': 'validation'}[split]
    return LAYOUTS[layout][kind].format(split=split, folder=folder, number=number, digit=_digit(number))


def _digit(number):
    """The class of image ``number`` of a data set whose images have one each: the classes take turns."""
    return (number - 1) % len(DIGITS)


def _numbers(options, split):
    return range(1, (options.num_train if split == 'train' else options.num_val) + 1)


def _save(path, pixels):
    # JPEG: little loss, full color resolution (half of it would take half of the noise away); PNG: fast
    Image.fromarray(pixels).save(path, quality=95, subsampling='4:4:4', compress_level=1)


def _link(source, target):
    """Share a file by a hard link, or by a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _class_map(sample):
    """Return the semantic map (H, W) uint8 in ADE20K's convention: 0 unlabeled, 1 background, 2 to 11 the digits."""
    classes = np.where(sample.rim, 0, 1).astype(np.uint8)
    for label, mask in zip(sample.labels, sample.masks):
        classes[mask] = label + 2
    return classes


def _encode(masks):
    """Return masks (N, H, W) bool in COCO's terms: run-length codes, boxes [x, y, width, height] and areas."""
    codes = rle.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))
    return codes, rle.toBbox(codes).tolist(), rle.area(codes).tolist()


def _instances(sample, number, first_id):
    """Return the COCO annotations of a sample; category ids are 1 to 10, so none equals its digit."""
    codes, boxes, areas = _encode(sample.masks)
    return [
        dict(
            id=first_id + i,
            image_id=number,
            category_id=int(label) + 1,
            bbox=boxes[i],
            area=areas[i],
            iscrowd=0,
            segmentation=dict(size=codes[i]['size'], counts=codes[i]['counts'].decode()),
        )
        for i, label in enumerate(sample.labels)
    ]


def _segments(sample, first_id):
    """Return the segments of a sample as COCO panoptic has them, and their map (H, W, 3) uint8.

    The digits have the category ids that they have as instances, the photographs those that follow. In the map a
    segment's id is R + 256 G + 65536 B, and 0 is unlabeled.
    """
    background = sample.background[None]
    masks = np.concatenate([sample.masks, background[background.any((1, 2))]])
    categories = [*sample.labels + 1, 1 + len(DIGITS) + sample.photo]
    _, boxes, areas = _encode(masks)
    segments, ids = [], np.zeros(sample.rim.shape, int)
    for i, mask in enumerate(masks):
        ids[mask] = first_id + i
        segments.append(dict(id=first_id + i, category_id=int(categories[i]), bbox=boxes[i], area=areas[i], iscrowd=0))
    return segments, np.stack([ids >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)


def _write_split(root, options, split):
    painter = DigitsPainter(options, split)
    for layout in options.layouts:
        for kind in LAYOUTS[layout]:
            for number in range(1, 1 + len(DIGITS)):  # one of each class
                (root / _path(layout, kind, split, number)).parent.mkdir(parents=True, exist_ok=True)
    images, instances, panoptic, num_segments = [], [], [], 0
    for number in progress(_numbers(options, split), f'digits, {split}'):
        sample = painter.draw(number - 1)
        saved = {}  # suffix -> path: layouts with the same image format share the file
        for layout in options.layouts:
            path = root / _path(layout, 'image', split, number)
            if path.suffix not in saved:
                _save(path, sample.image)
                saved[path.suffix] = path
            elif not path.exists():
                _link(saved[path.suffix], path)
        images.append(
            dict(
                id=number,
                file_name=Path(_path('coco', 'image', split, number)).name,
                license=1,
                width=options.image_size,
                height=options.image_size,
            )
        )
        classes = _class_map(sample)
        if 'ade' in options.layouts:
            _save(root / _path('ade', 'map', split, number), classes)
        if 'cityscapes' in options.layouts:
            # uint8: 0, unlabeled, becomes 255, which Cityscapes ignores
            _save(root / _path('cityscapes', 'map', split, number), classes - 1)
        if 'coco' in options.layouts:
            instances += _instances(sample, number, len(instances) + 1)
        if 'panoptic' in options.layouts:
            segments, segment_map = _segments(sample, num_segments + 1)
            num_segments += len(segments)
            path = root / _path('panoptic', 'map', split, number)
            _save(path, segment_map)
            panoptic.append(dict(image_id=number, file_name=path.name, segments_info=segments))
    things = [dict(id=i, name=name, supercategory='digit') for i, name in enumerate(DIGITS, start=1)]
    if 'coco' in options.layouts:
        _write_coco(root / _path('coco', 'instances', split), split, images, instances, things)
    if 'panoptic' in options.layouts:
        stuff = [dict(id=i, name=name, supercategory='photograph') for i, name in enumerate(PHOTOS, len(things) + 1)]
        categories = [dict(category, isthing=int(category in things)) for category in things + stuff]
        _write_coco(root / _path('panoptic', 'segments', split), split, images, panoptic, categories)


def _write_coco(path, split, images, annotations, categories):
    path.write_text(
        json.dumps(
            dict(
                info=dict(description=f'Digits on photographs, {split}', version=str(FORMAT)),
                licenses=[dict(id=1, name='Attribution License', url='https://creativecommons.org/licenses/by/2.0/')],
                images=images,
                annotations=annotations,
                categories=categories,
            )
        )
    )


def _manifest(options):
    packages = ('numpy', 'pillow', 'pycocotools', 'scikit-learn')
    versions = dict(mmnorm=__version__, python=platform.python_version(), **{name: version(name) for name in packages})
    return dict(format=FORMAT, options=asdict(options), versions=versions)


def _is_made(root, options, overwrite):
    """Whether root already holds this data set; refuse whatever else it holds, unless it may be overwritten."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        manifest = json.loads((root / MANIFEST).read_text())
        made_format, made = manifest['format'], DigitsOptions(**manifest['options'])
    except (OSError, KeyError, TypeError, ValueError):
        raise FileExistsError(
            f'{root} exists and was not made by make_digits (it has no {MANIFEST} that this version '
            'can read): choose another folder'
        ) from None
    if overwrite:
        own = {MANIFEST} | {
            _path(layout, kind, split, number)
            for layout in made.layouts
            for kind in LAYOUTS[layout]
            for split in SPLITS
            for number in _numbers(made, split)
        }
        foreign = {path.relative_to(root).as_posix() for path in root.rglob('*') if not path.is_dir()} - own
        if foreign:
            raise FileExistsError(
                f'{root} holds files that make_digits did not write, such as {min(foreign)}: '
                'move them away or choose another folder'
            )
        return False
    if (made_format, made) == (FORMAT, options):
        return True
    changes = [
        f'{name}={value!r} (now {getattr(options, name)!r})'
        for name, value in asdict(made).items()
        if value != getattr(options, name)
    ]
    raise FileExistsError(
        f'{root} holds digits made with {", ".join(changes) or "another version of mmnorm"}: '
        'pass overwrite=True (--overwrite) or choose another folder'
    )


def make_digits(root: str | Path, options: DigitsOptions | None = None, *, overwrite: bool = False) -> bool:
    """Write the digits data set under a folder, or leave it alone if it is already there.

    The same options give the same files, byte for byte, with the same versions of the libraries; ``digits.json`` names
    both. Training and validation share no scan and no part of a photograph. Each digit stays at least 80 % visible.

    - ``coco/``: instance segmentation. Category ids 1 to 10 are the classes '0' to '9'; masks are run-length encoded.
      mmdet: ``type='CocoDataset'``, ``metainfo=dict(classes=tuple('0123456789'))``.
    - ``panoptic``, in ``coco/`` too: things are the digits, with the same category ids, stuff the two photographs, 11
      and 12. mmdet: ``type='CocoPanopticDataset'``, ``metainfo=dict(classes=(*'0123456789', 'temple', 'flower'),
      thing_classes=tuple('0123456789'), stuff_classes=('temple', 'flower'))``.
    - ``ade/``: semantic segmentation. 0 unlabeled, 1 background, 2 to 11 the digits. mmseg: ``type='BaseSegDataset'``,
      ``reduce_zero_label=True``, ``metainfo=dict(classes=('background', *'0123456789'))``.
    - ``cityscapes/``: the same maps less one, 255 ignored. mmseg: ``type='BaseSegDataset'``,
      ``img_suffix='_leftImg8bit.png'``, ``seg_map_suffix='_gtFine_labelTrainIds.png'`` and the same metainfo.
    - ``imagenet``, not with others: classification. ``train/3/`` has the images of digit 3, as many as each other digit
      has. mmpretrain: ``type='CustomDataset'``, ``data_prefix='train'``.

    ``ADE20KDataset`` and ``CityscapesDataset`` read them too, but under the first 11 of their own class names: mmseg
    lets metainfo only select among these. Unlabeled in the maps is the pixel or so around a digit where its soft edge
    is blended into the background.

    Everything is written beside the folder first and moved into place at the end, so an interrupted run leaves no
    half-made data set; one that is killed outright may leave a hidden folder ``.<name>-...``, and the next call for
    the same root removes it, or, if it holds a data set that was whole, puts that into its place.

    Args:
        root (str or Path): Folder to make; it may exist if it is empty.
        options (DigitsOptions or None): What to draw. Default: what ``DigitsOptions()`` says.
        overwrite (bool): Replace a data set that an earlier call made. Files of any other origin are never touched.

    Returns:
        bool: Whether anything was written.

    Raises:
        FileExistsError: The folder holds other files, or digits made with other options and ``overwrite`` is off.
        ValueError: The digits find no room in the images.
    """
    options = options or DigitsOptions()
    root = Path(os.path.realpath(root))  # pathlib has an error of its own for a link to itself
    if _is_made(root, options, overwrite):
        return False
    with making_folder(root) as new:
        if _is_made(root, options, overwrite):  # by a call that was killed before it could finish
            return False
        for split in SPLITS:
            _write_split(new, options, split)
        (new / MANIFEST).write_text(json.dumps(_manifest(options), indent=2) + '\n')
        if _is_made(root, options, overwrite):  # by another process in the meantime
            return False
        take_place(new, root)
    return True
