"""A check of one annotation file in COCO's format (instances or panoptic), which needs nothing but the file."""

import gc
import json
import math
from collections import Counter
from contextlib import suppress
from itertools import chain

import numpy as np

from .findings import ERROR, WARNING, Findings

#: A box or a mask farther outside than this many sides of its image is no mistake of a pixel, but of units or numbers.
FAR = 1
_LARGEST = 10**6  # pixels on a side
_LEFT_OUT = 'mmdet leaves them out without a word'
_POLYGON = 'three points or more, of finite numbers, two for each'
#: What can be wrong with masks: how much it matters, and what it is.
_MASKS = dict(
    none=(ERROR, "annotations without 'segmentation'"),
    kind=(ERROR, 'annotations whose segmentation is neither a list of polygons nor run lengths (counts and size)'),
    polygons=(ERROR, f'annotations without a polygon of {_POLYGON}'),
    some=(WARNING, f'annotations with polygons that are not of {_POLYGON}: mmdet leaves these out'),
    far=(ERROR, 'annotations with a polygon far outside its image'),
    size=(ERROR, "annotations whose run lengths are of another size than the image's [height, width]"),
    counts=(ERROR, "annotations whose run lengths do not add up to the image's pixels"),
)


def check_coco(text, layout='coco'):
    """Check the text of an annotation file.

    Args:
        text (bytes): What the file holds.
        layout (str): 'lvis' (images are named by coco_url), 'panoptic' (annotations have segments_info), or another.

    Returns:
        dict: Plain values. ``findings``; and of a file that can be read, ``images`` (names), ``side`` (shorter side of
        the largest image, pixels), ``categories`` (id, name and number of objects that mmdet keeps, in the order of the
        file), ``number_of_objects`` (of all).
    """
    collecting = gc.isenabled()
    gc.disable()  # millions of new containers, none of them garbage: looking for it would take half of the time
    try:
        facts, found = _check_text(text, layout, _parse_fast)
        if not facts or any((finding.severity, finding.concerns) == (ERROR, 'everyone') for finding in found):
            facts, found = _check_text(text, layout, _parse)
    finally:
        if collecting:
            gc.enable()
    return dict(facts, findings=found.plain())


def _check_text(text, layout, parse):
    found = Findings()
    content = parse(text, found)
    return {} if content is None else _check(content, layout, found), found


def _parse_fast(text, found):
    """The file's object by orjson, if that is installed; it is the same as :func:`_parse` gives if it has no errors.

    orjson knows no NaN, says little of what is wrong, and makes floats of integers beyond 64 bits, which, as ids or in
    pixels, are errors.
    """
    try:
        import orjson

        content = orjson.loads(text)
    except (ImportError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _parse(text, found):
    """The file's object; None if it is none, with a finding that says why."""
    try:
        content = json.loads(text.decode('utf-8'))  # as pycocotools reads it: a byte order mark is none of JSON
    except UnicodeDecodeError as error:
        found.tell(ERROR, f'this is not text in UTF-8: {error.reason} at byte {error.start}')
    except json.JSONDecodeError as error:
        end = ', which is its end: the file is cut off' if text.strip() and error.pos >= len(error.doc.rstrip()) else ''
        found.tell(ERROR, f'this is not JSON: {error.msg} at line {error.lineno}, column {error.colno}{end}')
    except RecursionError:
        found.tell(ERROR, 'this is no annotation file: its JSON is nested too deeply')
    except ValueError as error:  # a number of more digits than Python converts
        found.tell(ERROR, f'this JSON cannot be read: {error}')
    else:
        if isinstance(content, dict):
            return content
        found.tell(ERROR, f"this is no annotation file: at its top is a {type(content).__name__}, not COCO's object")
    return None


def _check(content, layout, found):
    parts = {}
    for key in ('images', 'annotations', 'categories'):
        entries = content.get(key)
        if not isinstance(entries, list):
            what = 'is missing' if key not in content else f'is a {type(entries).__name__}, not a list'
            # test sets without labels have images and categories alone
            concerns = 'labels' if key not in content and key == 'annotations' else 'everyone'
            found.tell(ERROR, f'the key {key!r} {what}', concerns)
            entries = []
        elif not entries and key != 'annotations':
            found.tell(ERROR, f'{key!r} is empty')
        wrong = [i for i, entry in enumerate(entries) if not isinstance(entry, dict)]
        found.add(ERROR, f'entries of {key!r} that are no objects', wrong, lambda i, key=key: f'{key}[{i}]')
        parts[key] = [entry for entry in entries if isinstance(entry, dict)] if wrong else entries
    images, objects, categories = parts['images'], parts['annotations'], parts['categories']
    sizes = _check_images(images, layout, found)
    names = _check_categories(categories, layout, found)
    if layout == 'panoptic':
        objects = _segments(objects, found)
    kept = _check_objects(objects, sizes, names, layout, found)
    if objects:
        with_object = {entry['image_id'] for entry in kept}
        empty = [id_ for id_ in sizes if id_ not in with_object]
        found.add(WARNING, 'images without an object', empty, lambda id_: f'image {id_}')
    counts = Counter(entry['category_id'] for entry in kept)
    return dict(
        images=[name for name in (_file_name(image, layout) for image in images) if name],
        number_of_objects=len(objects),
        side=max((min(size) for size in sizes.values()), default=0),
        categories=[(id_, name, counts[id_]) for id_, name in names.items()],
    )


def _ids(entries, kind, found, unique=True):
    """Tell of ids that are missing, of no kind that can be one, or not unique; returns the entries that have one."""
    good = [entry for entry in entries if type(entry.get('id')) in (int, str)]
    if len(good) < len(entries):
        wrong = [i for i, entry in enumerate(entries) if 'id' not in entry]
        found.add(ERROR, f"{kind} without 'id'", wrong, lambda i: f'number {i + 1}')
        wrong = [entry for entry in entries if 'id' in entry and type(entry['id']) not in (int, str)]
        found.add(
            ERROR, f'{kind} whose id is neither a whole number nor a text', wrong, lambda entry: _short(entry['id'])
        )
    if unique:
        counts = Counter(entry['id'] for entry in good)
        if len(counts) < len(good):
            twice = [id_ for id_, count in counts.items() if count > 1]
            found.add(ERROR, f'ids that several {kind} have', twice, lambda id_: f'id {_short(id_)}')
    return good


def _check_images(images, layout, found):
    """Returns image id to (width, height) in pixels; of those without a size, (inf, inf)."""
    images = _ids(images, 'images', found)
    key = 'coco_url' if layout == 'lvis' else 'file_name'
    unnamed = [image for image in images if not (isinstance(image.get(key), str) and image[key])]
    found.add(ERROR, f'images without {key!r}', unnamed, _named('image'))
    if not unnamed:
        counts = Counter(image[key] for image in images)
        if len(counts) < len(images):
            twice = [name for name, count in counts.items() if count > 1]
            found.add(WARNING, 'files that several images have', twice, _short)
    sizes = {image['id']: (image.get('width'), image.get('height')) for image in images}
    wrong = [id_ for id_, size in sizes.items() if not all(_is_number(side) and 0 < side < _LARGEST for side in size)]
    found.add(
        ERROR,
        "images whose 'width' or 'height' is missing or no number of pixels",
        wrong,
        lambda id_: f'image {_short(id_)}: {_short(list(sizes[id_]))}',
    )
    return sizes | dict.fromkeys(wrong, (math.inf, math.inf))


def _check_categories(categories, layout, found):
    """Returns category id to name."""
    categories = _ids(categories, 'categories', found)
    named = [category for category in categories if isinstance(category.get('name'), str)]
    unnamed = [category for category in categories if not isinstance(category.get('name'), str)]
    found.add(ERROR, "categories without 'name'", unnamed, _named('category'))
    counts = Counter(category['name'] for category in named)
    twice = [name for name, count in counts.items() if count > 1]
    found.add(ERROR, 'names that several categories have, so that labels shift', twice, repr)
    if layout == 'panoptic':
        found.add(
            ERROR, "categories without 'isthing'", [c for c in categories if 'isthing' not in c], _named('category')
        )
    return {category['id']: category['name'] for category in named}


def _segments(annotations, found):
    """The segments of panoptic annotations, each with its image's id."""
    wrong = [i for i, entry in enumerate(annotations) if not isinstance(entry.get('segments_info'), list)]
    found.add(ERROR, "annotations without 'segments_info'", wrong, lambda i: f'annotations[{i}]')
    segments, twice = [], []
    for i, entry in enumerate(annotations):
        listed = entry.get('segments_info')
        listed = [segment for segment in listed if isinstance(segment, dict)] if isinstance(listed, list) else []
        if len({str(segment.get('id')) for segment in listed}) < len(listed):
            twice.append(i)
        segments += [dict(segment, image_id=entry.get('image_id')) for segment in listed]
    found.add(ERROR, 'images with an id that several of their segments have', twice, lambda i: f'annotations[{i}]')
    return segments


def _check_objects(objects, sizes, names, layout, found):
    """Returns the objects that mmdet keeps."""
    kind = 'segment' if layout == 'panoptic' else 'annotation'
    named, kinds = _named(kind), f'{kind}s'
    objects = _ids(objects, kinds, found, unique=layout != 'panoptic')
    for key, of in (('image_id', sizes), ('category_id', names)):
        known = [isinstance(entry.get(key), (int, str)) and entry[key] in of for entry in objects]
        if not all(known):
            part = 'images' if key == 'image_id' else 'categories'
            lost = [entry for entry, is_known in zip(objects, known) if not is_known]
            found.add(ERROR, f'{kinds} without {key!r}', [entry for entry in lost if key not in entry], named)
            what = f'{kinds} whose {key} is not among {part!r}: they would not be seen'
            lost = [entry for entry in lost if key in entry]
            found.add(ERROR, what, lost, lambda entry, key=key: f'{named(entry)}: {_short(entry[key])}')
            objects = [entry for entry, is_known in zip(objects, known) if is_known]
    if layout != 'panoptic':
        found.add(ERROR, f"{kinds} without 'area'", [entry for entry in objects if 'area' not in entry], named)
        crowd = [entry for entry in objects if 'iscrowd' not in entry]
        found.add(ERROR, f"{kinds} without 'iscrowd', which COCO's evaluation reads", crowd, named, 'metric')
    kept = _check_boxes(objects, sizes, kinds, named, found)
    if layout != 'panoptic':
        _check_masks(kept, sizes, named, found)
    return kept


def _check_boxes(objects, sizes, kinds, named, found):
    without = [entry for entry in objects if 'bbox' not in entry]
    found.add(ERROR, f"{kinds} without 'bbox'", without, named)
    if without:
        objects = [entry for entry in objects if 'bbox' in entry]
    tell = _teller(objects, 'bbox', named, found)
    boxes, is_box = _as_array([entry['bbox'] for entry in objects], 4)
    tell(ERROR, f'{kinds} whose bbox is not a list of four numbers', ~is_box)
    finite = is_box & np.isfinite(boxes).all(1)
    tell(ERROR, f'{kinds} whose bbox has a NaN or an infinite number', is_box & ~finite)
    x, y, w, h = np.where(finite[:, None], boxes, 1).T
    sides = chain.from_iterable(sizes[entry['image_id']] for entry in objects)
    width, height = np.fromiter(sides, float).reshape(-1, 2).T
    negative = finite & ((w < 0) | (h < 0))
    tell(ERROR, f'{kinds} whose bbox (x, y, width, height) has a negative width or height', negative)
    good = finite & ~negative
    beyond = np.maximum.reduce([-x / width, -y / height, (x + w) / width - 1, (y + h) / height - 1])
    far = good & (beyond > FAR)
    tell(ERROR, f'{kinds} whose bbox is far outside its image', far)
    good &= ~far
    overlap = np.minimum(x + w, width) - np.maximum(x, 0), np.minimum(y + h, height) - np.maximum(y, 0)
    thin = good & ((w < 1) | (h < 1))
    tell(WARNING, f'{kinds} whose bbox is less than a pixel wide or high: {_LEFT_OUT}', thin)
    outside = good & ~thin & ((overlap[0] <= 0) | (overlap[1] <= 0))
    tell(WARNING, f'{kinds} whose bbox is outside its image: {_LEFT_OUT}', outside)
    good &= ~thin & ~outside
    over = np.maximum.reduce([-x, -y, x + w - width, y + h - height])
    across = good & (over > 1)
    hint = ''
    if across.sum() > 0.1 * max(1, is_box.sum()):  # sizes are in image, corners beyond
        hint = '. They are many: does it hold two corners, where COCO has x, y, width, height?'
    tell(WARNING, f'{kinds} whose bbox reaches out of its image by more than a pixel{hint}', across)
    good &= _check_areas(objects, kinds, named, found)
    return [entry for entry, keep in zip(objects, good) if keep]


def _check_areas(objects, kinds, named, found):
    """Whether mmdet keeps an object for its area, (N,) bool."""
    tell = _teller(objects, 'area', named, found)
    areas, is_number = _as_array([[entry.get('area', 1)] for entry in objects], 1)
    tell(ERROR, f'{kinds} whose area is no number', ~is_number)
    areas = np.where(is_number, areas[:, 0], 1)
    tell(ERROR, f'{kinds} whose area is NaN or infinite', ~np.isfinite(areas))
    tell(WARNING, f'{kinds} whose area is 0 or less: {_LEFT_OUT}', areas <= 0)
    return areas > 0


def _teller(objects, key, named, found):
    """A function that adds a finding on those of objects that are chosen, (N,) bool, with their values of a key."""

    def tell(severity, what, chosen):
        places = [objects[i] for i in np.flatnonzero(chosen)]
        found.add(severity, what, places, lambda entry: f'{named(entry)}: {_short(entry[key])}')

    return tell


def _check_masks(objects, sizes, named, found):
    faults = {fault: [] for fault in _MASKS}
    for entry in objects:
        fault = _fault(entry.get('segmentation'), sizes[entry['image_id']])
        if fault:
            faults[fault].append(entry)
    describe = dict(size=lambda entry: f'{named(entry)}: {_short(entry["segmentation"].get("size"))}')
    for fault, (severity, what) in _MASKS.items():
        found.add(severity, what, faults[fault], describe.get(fault, named), 'masks')


def _fault(mask, size):
    """What is wrong with a segmentation of an image of (width, height): a key of :data:`_MASKS`; None for nothing."""
    if not mask:
        return 'none'
    if isinstance(mask, list):
        good = sum(map(_is_polygon, mask))
        if good < len(mask):
            return 'some' if good else 'polygons'
        return 'far' if max(map(max, mask)) > (1 + FAR) * max(size) else None
    if not isinstance(mask, dict) or not isinstance(mask.get('counts'), (str, list)):
        return 'kind'
    if mask.get('size') != [*size][::-1]:
        return 'size'
    return 'counts' if isinstance(mask['counts'], list) and not _fits(mask) else None


def _is_polygon(polygon):
    try:  # a sum is finite where all numbers are
        return len(polygon) >= 6 and len(polygon) % 2 == 0 and math.isfinite(sum(polygon))
    except (TypeError, OverflowError):
        return False


def _fits(mask):
    counts = mask['counts']
    return all(type(count) is int and count >= 0 for count in counts) and sum(counts) == math.prod(mask['size'])


def _file_name(image, layout):
    """Where mmdet looks for an image in the images' folder; None if the entry does not say."""
    if layout == 'lvis':
        url = image.get('coco_url')
        return url.replace('http://images.cocodataset.org/', '') if isinstance(url, str) else None
    name = image.get('file_name')
    return name if isinstance(name, str) and name else None


def _as_array(values, columns):
    """Lists of numbers as an array (N, columns) of float64, and which of them are that, (N,) bool; NaN for the rest."""
    good = [isinstance(value, list) and len(value) == columns for value in values]
    if all(good):
        with suppress(ValueError, OverflowError):  # lists of different lengths, integers beyond floats
            array = np.array([*chain.from_iterable(values)])  # in a third of the time that it takes lists
            if array.ndim == 1 and array.dtype.kind in 'iuf':
                return array.astype(float).reshape(-1, columns), np.ones(len(values), bool)
    good = [of and all(map(_is_number, value)) for of, value in zip(good, values)]
    numbers = [[*map(_float, value)] if of else [math.nan] * columns for of, value in zip(good, values)]
    return np.array(numbers, float).reshape(-1, columns), np.array(good, bool)


def _is_number(value):
    return type(value) in (int, float)


def _float(value):
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _named(kind):
    return lambda entry: f'{kind} {_short(entry.get("id"))}'


def _short(value):
    text = json.dumps(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
