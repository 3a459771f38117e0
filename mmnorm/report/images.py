"""Pictures of the report: images of the test set with ground truth and predictions drawn in."""

import io

import numpy as np
from matplotlib import font_manager
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .coco import match_objects
from .texts import one_line

# Of Okabe and Ito's palette, so that color-blind readers can tell right from wrong.
OUTCOME_COLORS = {'object': '#009E73', 'hit': '#0072B2', 'false': '#D55E00', 'missed': '#F0E442'}
SIDE = 420  # pixels of a picture's longer side: small images are enlarged by a whole number, large ones shrunk
FONT_SIZE = 17
MASK_OPACITY = 0.4
LONGEST_LABEL = 40  # characters


def compare_images(runs, evaluations, number, score_thr):
    """Draw ground truth beside each run's predictions.

    Args:
        runs (list[Run]): Tested on the same images; the first gets a note for images that are not there.
        evaluations (list[Evaluation]): One for each run.
        number (int): Images to show, chosen by the first run's outcomes.
        score_thr (float): Predictions with a lower score are not drawn.

    Returns:
        list[dict]: For each image its 'file' name, 'reason' ('evenly' or 'worst') and 'pictures', a list of (title,
        caption, JPEG bytes), the ground truth first.
    """
    first, coco_gt = runs[0], evaluations[0].coco_eval.cocoGt
    if first.img_dir is None:
        first.notes.append(
            f'The images of the test set ({first.test_dataset.get("data_prefix", "unknown")} in '
            f'{first.test_dataset.get("data_root", "unknown")}) are missing and not shown. Put the '
            'data set back where the config says.'
        )
        return []
    outcomes = [match_objects(evaluation.coco_eval, score_thr) for evaluation in evaluations]
    evenly, worst = choose_images(outcomes[0], coco_gt.getImgIds(), number)
    shown, missing = [], []
    for image_id in evenly + worst:
        file_name = coco_gt.imgs[image_id]['file_name']
        try:
            image = Image.open(first.img_dir / file_name).convert('RGB')
        except OSError:
            missing.append(file_name)
            continue
        pictures = [draw_ground_truth(image, evaluations[0].coco_eval, image_id)]
        for run, evaluation, outcome in zip(runs, evaluations, outcomes):
            pictures.append(draw_predictions(image, evaluation.coco_eval, image_id, outcome, run.name))
        shown.append(dict(file=file_name, reason='worst' if image_id in worst else 'evenly', pictures=pictures))
    if missing:
        first.notes.append(
            f'{len(missing)} of {len(evenly + worst)} chosen images cannot be read from '
            f'{first.img_dir}, e.g. {missing[0]}.'
        )
    return shown


def choose_images(outcomes, image_ids, number):
    """Choose images to show: two thirds evenly over the set, whatever the result, then the worst of the others.

    Args:
        outcomes (DataFrame): From ``match_objects``.
        image_ids (sequence[int]): All images.
        number (int): How many to choose.

    Returns:
        tuple[list[int], list[int]]: Ids of the images taken evenly, in order, and of the worst, the worst first: those
        with the lowest F1 = 2 hits / (2 hits + false + missed).
    """
    image_ids = sorted(image_ids)
    number_worst = min(number, len(image_ids)) // 3
    number_evenly = min(number, len(image_ids)) - number_worst
    evenly = [image_ids[index] for index in np.linspace(0, len(image_ids) - 1, number_evenly).round().astype(int)]
    counts = outcome_counts(outcomes).reindex(image_ids, fill_value=0)
    wrong = counts['false'] + counts['missed']
    f1 = 1 - (wrong / (2 * counts['hit'] + wrong)).fillna(0)  # nothing there and nothing predicted is right
    worst = f1.drop(evenly).sort_values(kind='stable').index[:number_worst]
    return evenly, list(worst)


def outcome_counts(outcomes):
    """Return how many of each outcome (columns hit, false, found, missed) every image (row) has."""
    counts = outcomes.groupby(['image_id', 'outcome']).size().unstack(fill_value=0)
    return counts.reindex(columns=['hit', 'false', 'found', 'missed'], fill_value=0)


def draw_ground_truth(image, coco_eval, image_id):
    """Return (title, caption, JPEG bytes) of an image with its annotated objects."""
    coco_gt, params = coco_eval.cocoGt, coco_eval.params
    annotations = coco_gt.loadAnns(coco_gt.getAnnIds(imgIds=image_id, catIds=params.catIds))
    objects = [as_object(coco_gt, annotation, 'object', params.iouType) for annotation in annotations]
    return 'Ground truth', f'objects: {len(objects)}', draw_objects(image, objects)


def draw_predictions(image, coco_eval, image_id, outcomes, title):
    """Return (title, caption, JPEG bytes) of an image with what was predicted and what was missed."""
    outcomes = outcomes[outcomes['image_id'] == image_id]
    objects = []
    for coco, kinds in ((coco_eval.cocoGt, ['missed']), (coco_eval.cocoDt, ['hit', 'false'])):
        chosen = outcomes[outcomes['outcome'].isin(kinds)]
        objects += [
            as_object(coco, coco.anns[id_], outcome, coco_eval.params.iouType)
            for id_, outcome in zip(chosen['id'], chosen['outcome'])
        ]
    counts = outcomes['outcome'].value_counts()
    caption = ', '.join(f'{outcome}: {counts.get(outcome, 0)}' for outcome in ('found', 'missed', 'false'))
    return title, caption, draw_objects(image, objects)


def as_object(coco, annotation, outcome, iou_type):
    """Return an annotation of ground truth or predictions as ``draw_objects`` takes it."""
    label = one_line(coco.cats[annotation['category_id']]['name'], LONGEST_LABEL)
    if 'score' in annotation:
        label += f' {annotation["score"]:.2f}'
    mask = coco.annToMask(annotation).astype(bool) if iou_type == 'segm' and outcome != 'missed' else None
    return dict(bbox=annotation.get('predicted_bbox', annotation['bbox']), mask=mask, outcome=outcome, label=label)


def draw_objects(image, objects):
    """Draw objects into an image.

    Args:
        image (PIL.Image.Image): RGB.
        objects (list[dict]): 'bbox' (x, y, width, height in the image's pixels), 'mask' (bool array of the image's
            height and width, or None), 'outcome' (a key of ``OUTCOME_COLORS``) and 'label' (text). Later ones cover
            earlier ones.

    Returns:
        bytes: JPEG, with a longer side of about ``SIDE`` pixels.
    """
    scale = SIDE / max(image.size)
    scale = max(1, round(scale)) if scale > 1 else scale
    size = tuple(round(side * scale) for side in image.size)
    picture = image.resize(size, Image.Resampling.LANCZOS)
    for item in objects:
        if item['mask'] is not None:
            paint_mask(picture, Image.fromarray(item['mask']).resize(size), OUTCOME_COLORS[item['outcome']])
    boxes = [[value * scale for value in item['bbox']] for item in objects]
    for item, (x, y, width, height) in zip(objects, boxes):
        corners = [x, y, x + width, y + height]
        ImageDraw.Draw(picture).rectangle(corners, outline=OUTCOME_COLORS[item['outcome']], width=3)
    taken = []
    for item, box in zip(objects, boxes):
        draw_label(picture, box, item['label'], OUTCOME_COLORS[item['outcome']], taken)
    file = io.BytesIO()
    picture.save(file, 'JPEG', quality=85)
    return file.getvalue()


def paint_mask(picture, mask, color):
    """Tint the pixels under a mask (mode '1' or 'L', of the picture's size) and draw its contour."""
    mask = mask.convert('L')
    contour = Image.fromarray(np.asarray(mask) - np.asarray(mask.filter(ImageFilter.MinFilter(5))))
    picture.paste(color, mask=mask.point(lambda value: int(value * MASK_OPACITY)))
    picture.paste(color, mask=contour)


def draw_label(picture, bbox, label, color, taken):
    """Write the label of a box at that corner of it where it covers no other label, if there is one.

    Args:
        picture (PIL.Image.Image): Drawn into.
        bbox (list[float]): x, y, width, height in the picture's pixels.
        label (str): The text.
        color (str): The ground of the text.
        taken (list): Places (left, top, right, bottom) of other labels; gets this one's.
    """
    draw = ImageDraw.Draw(picture)
    font = ImageFont.truetype(font_manager.findfont('DejaVu Sans'), FONT_SIZE)
    x, y, width, height = bbox
    across, down = draw.textlength(label, font) + 6, FONT_SIZE + 4
    places = []
    for top in (y - down, y + height, y, y + height - down):
        for left in (x, x + width - across):
            left = max(0, min(left, picture.width - across))
            inside = max(0, min(top, picture.height - down))
            places.append((left, inside, left + across, inside + down))
    place = next((place for place in places if not any(overlap(place, other) for other in taken)), places[0])
    taken.append(place)
    draw.rectangle(place, fill=color)
    draw.text((place[0] + 3, place[1] + 1), label, fill=ink_on(color), font=font)


def ink_on(color):
    """Return the color of text on a colored ground: black or white, whichever stands out more (by WCAG 2)."""
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
    luminance = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts))
    return 'black' if luminance > 0.179 else 'white'


def overlap(one, other):
    """Whether two rectangles (left, top, right, bottom) have points in common."""
    return all(one[axis] < other[axis + 2] and other[axis] < one[axis + 2] for axis in (0, 1))
