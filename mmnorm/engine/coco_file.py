"""A check of one annotation file in COCO's format (instances or panoptic), which needs nothing but the file."""

import gc
import json
import math
from collections import Counter

import numpy as np

from .findings import ERROR, WARNING, Findings

#: A box or a mask farther outside than this many sides of its image is no mistake of a pixel, but of units or numbers.
FAR = 1
_LARGEST = 10**6  # pixels on a side
_LEFT_OUT = 'mmdet leaves them out without a word'


def check_coco(text, layout='coco'):
    """Check the text of an annotation file.

    Args:
        text (bytes): What the file holds.
        layout (str): 'lvis' (images are named by coco_url), 'panoptic' (annotations have segments_info), or another.

    Returns:
        dict: Plain values. ``findings``; and of a file that can be read, ``images`` (names), ``empty`` (images without
        an object that mmdet keeps), ``sides`` (shorter side of the largest image), ``categories`` (id, name and number
        of kept objects, in the order of the file), ``segments`` (names of panoptic maps).
    """
    found = Findings()
    collecting = gc.isenabled()
    gc.disable()  # millions of new containers, none of them garbage: looking for it would take half of the time
    try:
        content = _parse(text, found)
        facts = {} if content is None else _check(content, layout, found)
    finally:
        if collecting:
            gc.enable()
    return dict(facts, findings=found.plain())


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
        if not isinstance(content.get(key), list):
            what = 'is missing' if key not in content else f'is a {type(content[key]).__name__}, not a list'
            # test sets without labels have images and categories alone
            concerns = 'labels' if key not in content and key == 'annotations' else 'everyone'
            found.tell(ERROR, f'the key {key!r} {what}', concerns)
        entries = content.get(key) if isinstance(content.get(key), list) else []
        parts[key] = [entry for entry in entries if isinstance(entry, dict)]
        if len(parts[key]) < len(entries):
            wrong = [i for i, entry in enumerate(entries) if not isinstance(entry, dict)]
            found.add(ERROR, f'entries of {key!r} that are no objects', wrong, lambda i, key=key: f'{key}[{i}]')
        elif not entries and key != 'annotations' and isinstance(content.get(key), list):
            found.tell(ERROR, f'{key!r} is empty')
    images, objects, categories = parts['images'], parts['annotations'], parts['categories']
    sizes = _check_images(images, layout, found)
    names = _check_categories(categories, layout, found)
    segments = []
    if layout == 'panoptic':
        objects, segments = _segments(objects, found)
    kept = _check_objects(objects, sizes, names, layout, found)
    with_object = {entry['image_id'] for entry in kept}
    empty = [id_ for id_ in sizes if id_ not in with_object]
    counts = Counter(entry['category_id'] for entry in kept)
    if objects:
        found.add(WARNING, 'images without an object', empty, lambda id_: f'image {id_}')
    return dict(
        images=[_file_name(image, layout) for image in images if _file_name(image, layout)],
        number_of_objects=len(objects),
        empty=len(empty),
        side=max((min(size) for size in sizes.values()), default=0),
        categories=[(id_, name, counts[id_]) for id_, name in names.items()],
        segments=segments,
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
    """The segments of panoptic annotations, each with its image's id, and the names of the maps."""
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
    return segments, [entry['file_name'] for entry in annotations if isinstance(entry.get('file_name'), str)]


def _check_objects(objects, sizes, names, layout, found):
    """Returns the objects that mmdet keeps."""
    kind = 'segment' if layout == 'panoptic' else 'annotation'
    named, kinds = _named(kind), f'{kind}s'
    objects = _ids(objects, kinds, found, unique=layout != 'panoptic')
    for key, of in (('image_id', sizes), ('category_id', names)):
        values = [_hashable(entry.get(key)) for entry in objects]
        lost = [entry for entry, value in zip(objects, values) if value not in of]
        if lost:
            part = 'images' if key == 'image_id' else 'categories'
            missing = [entry for entry in lost if key not in entry]
            found.add(ERROR, f'{kinds} without {key!r}', missing, named)
            lost = [entry for entry in lost if key in entry]
            what = f'{kinds} whose {key} is not among {part!r}: they would not be seen'
            found.add(ERROR, what, lost, lambda entry, key=key: f'{named(entry)}: {_short(entry[key])}')
            objects = [entry for entry, value in zip(objects, values) if value in of]
    if layout != 'panoptic':
        found.add(ERROR, f"{kinds} without 'area'", [entry for entry in objects if 'area' not in entry], named)
        crowd = [entry for entry in objects if 'iscrowd' not in entry]
        found.add(ERROR, f"{kinds} without 'iscrowd', which COCO's evaluation reads", crowd, named, 'metric')
    kept = _check_boxes(objects, sizes, kinds, named, found)
    if layout != 'panoptic':
        _check_masks(kept, sizes, named, found)
    return kept


def _check_boxes(objects, sizes, kinds, named, found):
    def tell(severity, what, chosen):
        found.add(
            severity, what, np.flatnonzero(chosen), lambda i: f'{named(objects[i])}: {_short(objects[i]["bbox"])}'
        )

    without = [entry for entry in objects if 'bbox' not in entry]
    found.add(ERROR, f"{kinds} without 'bbox'", without, named)
    if without:
        objects = [entry for entry in objects if 'bbox' in entry]
    boxes = _as_array([entry['bbox'] for entry in objects], 4)
    is_box = np.ones(len(objects), bool)
    if boxes is None:
        is_box = np.array([_is_list_of_numbers(entry['bbox']) and len(entry['bbox']) == 4 for entry in objects])
        tell(ERROR, f'{kinds} whose bbox is not a list of four numbers', ~is_box)
        objects = [entry for entry, good in zip(objects, is_box) if good]
        boxes = np.array([[_float(value) for value in entry['bbox']] for entry in objects], float).reshape(-1, 4)
    finite = np.isfinite(boxes).all(1)
    tell(ERROR, f'{kinds} whose bbox has a NaN or an infinite number', ~finite)
    x, y, w, h = np.where(finite[:, None], boxes, 1).T
    width, height = np.array([sizes[entry['image_id']] for entry in objects], float).reshape(-1, 2).T
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
    if across.sum() > 0.1 * max(1, len(objects)):  # sizes are in image, corners beyond
        hint = '. They are many: does it hold two corners, where COCO has x, y, width, height?'
    tell(WARNING, f'{kinds} whose bbox reaches out of its image by more than a pixel{hint}', across)
    return [entry for entry, keep in zip(objects, good & _check_areas(objects, kinds, named, found)) if keep]


def _check_areas(objects, kinds, named, found):
    """Whether mmdet keeps an object for its area, (N,) bool."""

    def tell(severity, what, chosen):
        found.add(
            severity, what, np.flatnonzero(chosen), lambda i: f'{named(objects[i])}: {_short(objects[i]["area"])}'
        )

    values = [entry.get('area', 1) for entry in objects]
    areas = _as_array(values, None)
    if areas is None:
        numbers = np.array([_is_number(value) for value in values])
        tell(ERROR, f'{kinds} whose area is no number', ~numbers)
        areas = np.array([_float(value) if number else 1 for value, number in zip(values, numbers)], float)
    tell(ERROR, f'{kinds} whose area is NaN or infinite', ~np.isfinite(areas))
    tell(WARNING, f'{kinds} whose area is 0 or less: {_LEFT_OUT}', areas <= 0)
    return areas > 0


def _check_masks(objects, sizes, named, found):
    without, kinds, polygons, some, sides, counts, far = [], [], [], [], [], [], []
    for entry in objects:
        mask = entry.get('segmentation')
        if not mask:
            without.append(entry)
        elif isinstance(mask, list):
            good = sum(_is_polygon(polygon) for polygon in mask)
            if not good:
                polygons.append(entry)
            elif good < len(mask):
                some.append(entry)
            elif max(map(max, mask)) > (1 + FAR) * max(sizes[entry['image_id']]):
                far.append(entry)
        elif isinstance(mask, dict):
            if not isinstance(mask.get('counts'), (str, list)):
                kinds.append(entry)
            elif list(_as_list(mask.get('size'))) != [*sizes[entry['image_id']]][::-1]:
                sides.append(entry)
            elif isinstance(mask['counts'], list) and not _fits(mask):
                counts.append(entry)
        else:
            kinds.append(entry)
    found.add(ERROR, "annotations without 'segmentation'", without, named, 'masks')
    found.add(
        ERROR,
        'annotations whose segmentation is neither a list of polygons nor run lengths (counts and size)',
        kinds,
        named,
        'masks',
    )
    what = 'three points or more, of finite numbers, two for each'
    found.add(ERROR, f'annotations without a polygon of {what}', polygons, named, 'masks')
    found.add(
        WARNING, f'annotations with polygons that are not of {what}: mmdet leaves these out', some, named, 'masks'
    )
    found.add(ERROR, 'annotations with a polygon far outside its image', far, named, 'masks')
    found.add(
        ERROR,
        "annotations whose run lengths are of another size than the image's [height, width]",
        sides,
        lambda entry: f'{named(entry)}: {_short(entry["segmentation"].get("size"))}',
        'masks',
    )
    found.add(ERROR, "annotations whose run lengths do not add up to the image's pixels", counts, named, 'masks')


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
    """Numbers (N,) or (N, columns) as an array of float64; None if they are anything else."""
    shape = (len(values),) if columns is None else (len(values), columns)
    if not values:
        return np.zeros(shape)
    try:
        array = np.array(values)
    except (ValueError, OverflowError):
        return None
    return array.astype(float) if array.shape == shape and array.dtype.kind in 'iuf' else None


def _is_number(value):
    return type(value) in (int, float)


def _is_list_of_numbers(value):
    return isinstance(value, list) and all(map(_is_number, value))


def _float(value):
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _as_list(value):
    return value if isinstance(value, list) else []


def _hashable(value):
    return value if isinstance(value, (int, str)) else None


def _named(kind):
    return lambda entry: f'{kind} {_short(entry.get("id"))}'


def _short(value):
    text = json.dumps(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
