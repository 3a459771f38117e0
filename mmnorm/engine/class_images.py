"""The check of images with one label each: folders by class, and lists, as mmpretrain's CustomDataset reads them."""

import os
from collections import Counter
from pathlib import Path

import mmcv
import numpy as np
from mmengine.fileio import list_from_file

from .findings import ERROR, WARNING


def check_class_images(check, dataset, labels, read, backend):
    """Check the files of a data set, and fill in what its check has of them.

    Args:
        check (DataCheck): Gets path, images, labels and findings.
        dataset (CustomDataset): Of mmpretrain, not read yet.
        labels (bool): Whether somebody reads its labels.
        read (int): Images to decode, evenly over the set.
        backend (str): Of mmcv, that decodes them.
    """
    found, classes = check.findings, dataset.CLASSES
    check.path = dataset.ann_file or dataset.img_prefix
    if dataset.ann_file:
        entries = _listed(found, dataset)
        check.labels = list(classes) if classes and dataset.with_label else None
        check.classes = len(classes or ()) or 1 + max((label for _, label in entries), default=0)
    else:
        entries, folders = _in_folders(found, dataset)
        check.labels, check.classes = folders, len(folders or ())
        if folders and classes and len(classes) != len(folders):
            found.tell(
                ERROR,
                f'it has {len(folders)} folders, and {len(classes)} classes are named, by the config or by '
                f'{type(dataset).__name__} itself: each folder is a class, an empty one too',
            )
        without = sorted({*range(check.classes)} - {label for _, label in entries})
        found.add(WARNING, 'class folders without an image', [folders[label] for label in without])
    check.images = [path for path, _ in entries]
    if not entries:
        found.tell(ERROR, f'there are no images that end in {", ".join(sorted(dataset.extensions))}')
    if labels and dataset.with_label and dataset.ann_file:
        seen = Counter(label for _, label in entries)
        wrong = [label for label in seen if not 0 <= label < check.classes]
        found.add(ERROR, f'labels that are none of its {check.classes} classes', wrong)
        unseen = [classes[label] for label in range(len(classes or ())) if label not in seen]
        found.add(WARNING, 'classes without an image', unseen, repr)
    chosen = np.unique(np.linspace(0, len(entries) - 1, min(read, len(entries))).astype(int))
    unread = [path for path in (check.images[i] for i in chosen) if os.path.isfile(path) and not _reads(path, backend)]
    found.add(ERROR, f'images that cannot be read, of the {len(chosen)} that were', unread)


def _in_folders(found, dataset):
    """Path and label of each image, and the folders by label (None if it has no labels)."""
    from mmpretrain.datasets.custom import find_folders, get_samples

    folders, numbers = find_folders(dataset.img_prefix) if dataset.with_label else (None, None)
    samples, _ = get_samples(dataset.img_prefix, numbers, dataset.is_valid_file)
    if folders is None:
        samples = [(name, 0) for name in samples]
    hidden = [folder for folder in folders or () if folder.startswith('.')]
    found.add(ERROR, 'hidden folders, each of which counts as a class and shifts the labels of others', hidden)
    return [(os.path.join(dataset.img_prefix, name), label) for name, label in samples], folders


def _listed(found, dataset):
    """Path and label (0 if it has none) of each image of a list; what cannot be read of it is told."""
    lines, entries, wrong = list_from_file(dataset.ann_file), [], []
    for number, line in enumerate(lines, 1):
        name, _, label = line.strip().rpartition(' ') if dataset.with_label else (line, '', '0')
        try:
            entries.append((os.path.join(dataset.img_prefix, name), int(label)))
        except ValueError:
            wrong.append(f'line {number}: {line!r}')
    found.add(ERROR, 'lines that do not end in a blank and a whole number, the label', wrong)
    return entries


def _reads(path, backend):
    try:
        return mmcv.imfrombytes(Path(path).read_bytes(), backend=backend) is not None
    except Exception:  # of the decoder
        return False
