"""The data sets of a config, checked before a run: what would end it late, or train and evaluate something else."""

import gzip
import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import mmcv
import numpy as np
from mmengine.registry import DATASETS

from mmnorm import __version__
from mmnorm.files import write_bytes
from mmnorm.openmmlab.configs import dicts, placed_dicts

from .class_images import check_class_images
from .coco_file import check_coco
from .findings import ERROR, EXAMPLES, WARNING, Finding, Findings

#: Annotation files from this size on (bytes) have their result kept; smaller ones are checked in less than a second.
KEPT_FROM = 2**24
#: Files that are read of each set, evenly over it: label maps for semantic segmentation, images for classification.
MAPS = 50
_LAYOUTS = {'LVISV1Dataset': 'lvis', 'LVISV05Dataset': 'lvis_0.5', 'CocoPanopticDataset': 'panoptic'}
_METRICS = {'CocoMetric': 'coco', 'CocoPanopticMetric': 'panoptic'}


@dataclass
class DataCheck:
    """The check of one data set, or of the annotation file of an evaluator.

    Attributes:
        split: 'train', 'val' or 'test'.
        kind: Name of the class, of the data set or the metric.
        path: The annotation file, or the folder of images.
        findings: What is wrong.
        images: Paths of all images.
        labels: Names of the classes, in the order in which labels count them; None where the file does not say.
        classes: How many classes the labels of images count; 0 where labels are of objects or pixels.
        skipped: Why there was no check, or ''.
        layout: Of an annotation file in COCO's format, as :func:`check_coco` takes it; '' of folders.
        of_evaluator: Whether it is an annotation file that an evaluator alone reads.
    """

    split: str
    kind: str
    path: str = ''
    findings: Findings = field(default_factory=Findings)
    images: list = field(default_factory=list, repr=False)
    labels: list | None = None
    classes: int = 0
    skipped: str = ''
    layout: str = ''
    of_evaluator: bool = False


def check_data(cfg, splits, maps=MAPS, say=lambda text: None):
    """Check the data sets of a config: files in COCO's format, folders for semantic segmentation, images by class.

    The result for an annotation file of :data:`KEPT_FROM` bytes or more is kept in :func:`cache_folder` by the sum of
    the file. Data that are not on this machine's disk are not looked at.

    Args:
        cfg (Config): Of mmdet, mmseg or mmpretrain; the files and folders that its data sets name exist.
        splits (tuple[str]): Which of 'train', 'val', 'test' to check.
        maps (int): Label maps, or images with one label, to read of each set.
        say (callable): Called with a line before what may take seconds.

    Returns:
        list[DataCheck]: In the order of the config.
    """
    checks = []
    for split in splits:
        evaluators = [] if split == 'train' else _as_list(cfg.get(f'{split}_evaluator'))
        evaluators = [one for one in evaluators if isinstance(one, dict) and not one.get('format_only')]
        of_split = []
        for leaf in _leaves((cfg.get(f'{split}_dataloader') or {}).get('dataset')):
            scope = leaf.get('_scope_') or cfg.get('default_scope')
            with DATASETS.switch_scope_and_registry(scope) as registry:
                of_split.append(_check_dataset(leaf, registry, split, evaluators, maps, say))
        checks += of_split + _check_evaluators(evaluators, of_split, split, say)
    _compare(checks)
    _check_heads(checks, cfg.get('model'))
    _check_topk(checks, cfg)
    return checks


def lines(checks, severity):
    """What checks found of one severity, a line (str) for each finding, with its file."""
    found = [
        f'{check.path}: {finding}' for check in checks for finding in check.findings if finding.severity == severity
    ]
    return list(dict.fromkeys(found))  # val and test are often the same


def cache_folder():
    """Where results are kept (Path): the user's cache, for data often lie where many read and none should write."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache', 'mmnorm', 'check_data')


def _leaves(dataset):
    """The configs of the data sets in a config of wrappers."""
    if isinstance(dataset, (list, tuple)):
        return [leaf for one in dataset for leaf in _leaves(one)]
    if not isinstance(dataset, dict):
        return []
    inner = dataset.get('datasets', dataset.get('dataset'))
    return [dataset] if inner is None else _leaves(inner)


def _check_dataset(cfg, registry, split, evaluators, maps, say):
    kind = cfg.get('type')
    if isinstance(kind, str):
        with suppress(RuntimeError):  # told by the run, which builds it
            kind = registry.get(kind) or kind
    check = DataCheck(split, getattr(kind, '__name__', str(kind)))
    bases = {f'{base.__module__.partition(".")[0]}.{base.__name__}' for base in getattr(kind, '__mro__', ())}
    reads_coco = 'mmdet.CocoDataset' in bases
    has_classes = 'mmpretrain.CustomDataset' in bases
    if not reads_coco and not has_classes and 'mmseg.BaseSegDataset' not in bases:
        check.skipped = 'only data in the format of COCO, folders as mmseg has them and images by class are checked'
        return check
    methods = ('load_data_list', 'parse_data_info') if reads_coco else ('load_data_list',) if has_classes else ()
    if any(getattr(kind, method).__module__.partition('.')[0] not in ('mmdet', 'mmpretrain') for method in methods):
        check.skipped = 'this class reads its files in a way of its own'
        return check
    if cfg.get('backend_args') or '://' in str(cfg.get('ann_file') or ''):
        check.skipped = "it is not on this machine's disk"
        return check
    try:
        arguments = {key: value for key, value in cfg.items() if key != 'type' and not key.startswith('_')}
        dataset = kind(**dict(arguments, pipeline=[], lazy_init=True))
    except Exception as error:  # a class of any project's; the run, which builds it too, tells more
        check.path, check.skipped = cfg.get('ann_file') or '', f'it cannot be built: {type(error).__name__}: {error}'
        check.findings.tell(WARNING, f'{check.kind} was not checked: {check.skipped}')
        return check
    wants_objects = split == 'train' and (cfg.get('filter_cfg') or {}).get('filter_empty_gt', True)
    concerns = {'everyone', *(['labels'] if wants_objects or evaluators else ())}
    if reads_coco:
        concerns |= {'metric' for evaluator in evaluators if _METRICS.get(_name(evaluator)) == 'coco'}
        segm = any('segm' in _as_list(evaluator.get('metric')) for evaluator in evaluators)
        if segm or any(step['with_mask'] for step in dicts(cfg.get('pipeline'), 'with_mask')):
            concerns.add('masks')
        layout = next((layout for name, layout in _LAYOUTS.items() if f'mmdet.{name}' in bases), 'coco')
        _check_coco_dataset(check, dataset, layout, concerns, say)
    elif has_classes:
        loaders = [step for step in cfg.get('pipeline') or () if _name(step) == 'LoadImageFromFile']
        backend = loaders[0].get('imdecode_backend', 'cv2') if loaders else None
        check_class_images(check, dataset, 'labels' in concerns, maps if loaders else 0, backend)
        if dataset.ann_file:
            check.findings.add(ERROR, f'images that are not in {dataset.img_prefix}', missing_files(check.images))
    else:
        loaders = [step for step in cfg.get('pipeline') or () if _name(step) == 'LoadAnnotations']
        backend = loaders[0].get('imdecode_backend', 'pillow') if loaders else None
        _check_folders(check, dataset, 'labels' in concerns, maps if loaders else 0, backend)
    return check


def _check_coco_dataset(check, dataset, layout, concerns, say):
    check.path, check.layout = dataset.ann_file, layout
    facts = _facts(check, layout, concerns, say)
    if 'categories' not in facts:
        return
    classes = dataset.metainfo.get('classes')
    _check_classes(check, facts, classes, by_file=_reader(dataset) == 'CocoDataset', labels='labels' in concerns)
    smallest = (dataset.filter_cfg or {}).get('min_size', 0)
    if check.split == 'train' and 0 < facts['side'] < smallest:
        check.findings.tell(ERROR, f'no image is {smallest} pixels wide and high, as filter_cfg.min_size asks for')
    if _reader(dataset) not in ('CocoDataset', 'LVISV05Dataset', 'LVISV1Dataset'):
        return  # it changes the names of images
    folder = dataset.data_prefix.get('img') or ''
    names = facts['images']
    if layout == 'lvis_0.5':  # where mmdet takes COCO's newer names
        names = [name[-16:] if name.startswith('COCO') else name for name in names]
    check.images = [os.path.join(folder, name) for name in names]
    check.findings.add(ERROR, f'images that are not in {folder or "."}', missing_files(check.images))
    folder = dataset.data_prefix.get('seg')
    if folder and 'labels' in concerns:
        if layout == 'panoptic':
            maps = [name.replace('.jpg', '.png') for name in names]
        else:
            maps = [name.rsplit('.', 1)[0] + dataset.seg_map_suffix for name in names]
        missing = missing_files([os.path.join(folder, name) for name in maps])
        check.findings.add(ERROR, f'maps of images that are not in {folder}', missing)


def _reader(dataset):
    """The name of the class that has a data set's way to read its file."""
    return type(dataset).load_data_list.__qualname__.partition('.')[0]


def _check_classes(check, facts, classes, by_file, labels):
    """Compare categories and classes; ``by_file``: labels count the file's categories that are classes."""
    found, categories = check.findings, facts['categories']
    if not isinstance(classes, (list, tuple)) or not classes:
        found.tell(ERROR, f"metainfo of the config has classes={classes!r}: it must be names, as in ('cat', 'dog')")
        return
    names, chosen = [name for _, name, _ in categories], set(classes)
    if by_file:
        check.labels = [name for name in names if name in chosen]
        known = set(check.labels)
        missing = [name for name in classes if name not in known]
        if len(missing) == len(classes):
            found.tell(
                ERROR,
                f'none of its {len(names)} categories ({_some(names)}) is one of the {len(classes)} classes of the '
                f"config ({_some(classes)}): set metainfo=dict(classes=...) in the data set's config",
            )
            return
        found.add(
            ERROR,
            'classes of the config that are none of its categories, so that labels of the others shift',
            missing,
            repr,
        )
        if not missing and check.labels != list(classes):
            found.tell(
                WARNING,
                'its categories are in another order than the classes of the config, and mmdet counts labels by the '
                f"file: figures are right, the names that are drawn are not. The file's order is {_some(check.labels)}",
            )
    if not labels:
        return
    used = [(name, count) for _, name, count in categories if not by_file or name in chosen]
    if not any(count for _, count in used) and facts['number_of_objects']:
        found.tell(ERROR, 'there is no object of the classes of the config that mmdet keeps')
        return
    if not facts['number_of_objects'] and not found:
        found.tell(ERROR, 'there are no objects')
        return
    found.add(WARNING, 'classes without an object', [name for name, count in used if not count], repr)
    others = [name for name in names if by_file and name not in chosen]
    found.add(WARNING, 'categories that are no class of the config, whose objects are left out', others, repr)


def _check_evaluators(evaluators, of_split, split, say):
    """Annotation files that evaluators read, and no data set of theirs."""
    checks = []
    for evaluator in evaluators:
        layout, path = _METRICS.get(_name(evaluator)), evaluator.get('ann_file')
        known = [os.path.abspath(check.path) for check in of_split if check.path]
        if not layout or not path or '://' in path or evaluator.get('backend_args') or os.path.abspath(path) in known:
            continue
        check = DataCheck(split, _name(evaluator), path, of_evaluator=True)
        checks.append(check)
        if not os.path.isfile(path):
            check.findings.tell(ERROR, f'this ann_file of {split}_evaluator does not exist')
            continue
        concerns = {'everyone', 'labels', *(['metric'] if layout == 'coco' else ())}
        concerns |= {'masks' for metric in _as_list(evaluator.get('metric')) if metric == 'segm'}
        facts = _facts(check, layout, concerns, say)
        labels = [of.labels for of in of_split if of.labels]
        if labels and 'categories' in facts:
            check.labels = [name for _, name, _ in facts['categories'] if name in labels[0]]
    return checks


def _facts(check, layout, concerns, say):
    """What :func:`check_coco` says of a file; findings that concern a run are added to its check."""
    try:
        facts = _kept_facts(check.path, layout, say)
    except OSError as error:
        check.findings.tell(ERROR, f'it cannot be read: {error.strerror}')
        return {}
    found = [Finding(**finding) for finding in facts['findings']]
    check.findings += [finding for finding in found if finding.concerns in concerns]
    return facts


def _kept_facts(path, layout, say):
    text = Path(path).read_bytes()
    if len(text) < KEPT_FROM:
        return check_coco(text, layout)
    of = hashlib.blake2b(f'{__version__} {layout} '.encode(), digest_size=20)
    of.update(text)
    kept = cache_folder() / f'{of.hexdigest()}.json.gz'
    with suppress(OSError, ValueError, EOFError):
        return json.loads(gzip.decompress(kept.read_bytes()))
    say(f'checking {path} ({len(text) / 2**20:.0f} MiB), once')
    facts = check_coco(text, layout)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(kept, gzip.compress(json.dumps(facts).encode(), 1))
        say(f'the result is kept in {kept.parent}')
    except OSError as error:
        say(f'the result is not kept, and the next run checks again: {error}')
    return facts


def missing_files(paths):
    """Those of many files (list[str]) that do not exist; each folder is listed once."""
    folders = {}
    for folder in {os.path.dirname(path) for path in paths}:
        try:
            folders[folder] = set(os.listdir(folder or '.'))
        except OSError:
            folders[folder] = ()
    return [path for path in paths if os.path.basename(path) not in folders[os.path.dirname(path)]]


def _check_folders(check, dataset, labels, maps, backend):
    """Pairs of images and label maps as mmseg finds them, and the values of some maps."""
    found, prefix = check.findings, dataset.data_prefix
    check.path = prefix.get('img_path') or ''
    try:
        entries = dataset.load_data_list()
    except Exception as error:  # of a class of any project's
        found.tell(ERROR, f'its files cannot be listed: {type(error).__name__}: {error}')
        return
    check.images = [entry['img_path'] for entry in entries if 'img_path' in entry]
    if not entries:
        found.tell(ERROR, f'there are no images that end in {dataset.img_suffix}')
        return
    lost = missing_files(check.images)
    found.add(ERROR, f'images that {dataset.ann_file} names and that do not exist', lost)
    pairs = [(entry['seg_map_path'], entry.get('img_path')) for entry in entries if entry.get('seg_map_path')]
    if not labels or not pairs:
        return
    without = set(missing_files([path for path, _ in pairs]))
    found.add(ERROR, f'images without a label map in {prefix.get("seg_map_path")}', sorted(without))
    pairs = [pair for pair in pairs if pair[0] not in without]
    chosen = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, min(maps, len(pairs))).astype(int))]
    _check_maps(found, chosen, dataset, backend)


def _check_maps(found, pairs, dataset, backend):
    number = len(dataset.METAINFO['classes'] if dataset.label_map else dataset.metainfo.get('classes') or ())
    allowed = {*range(number + dataset.reduce_zero_label), 255, dataset.ignore_index}
    unread, channels, values, sizes = [], [], {}, []
    for path, image in pairs:
        try:
            labels = mmcv.imfrombytes(Path(path).read_bytes(), flag='unchanged', backend=backend).squeeze()
        except Exception as error:  # of the decoder
            unread.append(f'{path}: {error}')
            continue
        if labels.ndim != 2:
            channels.append(f'{path}: {" x ".join(map(str, labels.shape))}')
            continue
        more = sorted(set(np.unique(labels).tolist()) - allowed)
        if more and number:
            values[path] = more
        size = _size(image)
        if size and size != labels.shape[::-1]:
            sizes.append(f'{path}: {labels.shape[::-1]}, {image}: {size}')
    of = f', of the {len(pairs)} that were read'
    found.add(ERROR, f'label maps that cannot be read{of}', unread)
    found.add(ERROR, f'label maps that have colors, where a class is one number{of}', channels)
    found.add(ERROR, f'label maps of another size than their image{of}', sizes)
    zero = ' and 0 for no label' if dataset.reduce_zero_label else ''
    found.add(
        ERROR,
        f'label maps with values that are neither one of {number} classes{zero} nor {dataset.ignore_index}{of}',
        list(values),
        lambda path: f'{path}: {_some(values[path])}',
    )


def _size(image):
    """Width and height (tuple) of an image file; None if it cannot be read: mmseg has other readers than this one."""
    from PIL import Image

    with suppress(Exception), Image.open(image) as opened:
        turned = opened.getexif().get(274, 1) > 4  # by the orientation, which readers of images follow
        return opened.size[::-1] if turned else opened.size
    return None


def _compare(checks):
    """Labels that training and evaluation count differently, and images that are in both."""
    of_training = [check for check in checks if check.split == 'train']
    if not of_training:
        return
    labels = next((check.labels for check in of_training if check.labels), None)
    images = {os.path.abspath(path) for check in of_training for path in check.images}
    for check in checks:
        # an evaluator of a panoptic set's instances has the first of its classes
        others = check.labels and [*check.labels, *(labels[len(check.labels) :] if check.of_evaluator else ())]
        if labels and others and others != labels:
            i, (label, other) = next(
                (i, pair) for i, pair in enumerate(zip_longest(labels, others)) if pair[0] != pair[1]
            )
            counted = (
                'mmpretrain counts labels by folders'
                if check.classes
                else "mmdet counts labels by each file's categories"
            )
            check.findings.tell(
                ERROR,
                f'label {i} is {other!r} here and {label!r} in {of_training[0].path}: {counted}, '
                'which must be the same in both, in the same order',
            )
        if check.split != 'train' and check.images:
            both = [path for path in check.images if os.path.abspath(path) in images]
            check.findings.add(WARNING, 'images that are trained on too', both)


def _check_heads(checks, model):
    """Labels that a head has no output for, which some losses take for background; outputs that no label asks for."""
    pattern = re.compile(r'\.bbox_head(\.\d+)?$|^model\.head$')
    heads = [(key, head.get('num_classes')) for key, head in placed_dicts(model, 'model') if pattern.search(key)]
    for key, number in heads:
        for check in checks:
            of_images = bool(check.classes) and key == 'model.head'
            of_objects = not check.classes and check.layout != 'panoptic'  # which has labels of no object too
            if check.split != 'train' or not isinstance(number, int) or not (of_images or of_objects):
                continue
            classes = check.classes or len(check.labels or ())
            if number < classes:
                check.findings.tell(
                    ERROR,
                    f'it has {classes} {"classes" if of_images else "of the classes of the config"}, and '
                    f'{key}.num_classes is {number}',
                )
            elif of_images and number > classes:
                check.findings.tell(
                    WARNING, f'it has {classes} classes, and {key}.num_classes is {number}: some are never trained'
                )


def _check_topk(checks, cfg):
    """Accuracies that need more classes than there are, which end the first evaluation."""
    number = cfg.get('model', {}).get('head', {}).get('num_classes')
    for check in checks:
        for evaluator in _as_list(cfg.get(f'{check.split}_evaluator')) if check.classes else ():
            topk = max(_as_list(evaluator.get('topk')), default=1)
            if _name(evaluator) == 'Accuracy' and isinstance(number, int) and topk > number:
                check.findings.tell(
                    ERROR, f'top-{topk} accuracy, as {check.split}_evaluator asks for, needs more than {number} classes'
                )


def _name(cfg):
    """The class name of a config, whose type may be a class or a name with its scope."""
    kind = cfg.get('type') if hasattr(cfg, 'get') else cfg
    return getattr(kind, '__name__', str(kind).rpartition('.')[2])


def _as_list(value):
    return list(value) if isinstance(value, (list, tuple)) else [value] if value else []


def _some(values):
    return ', '.join(map(str, values[:EXAMPLES])) + ', ...' * (len(values) > EXAMPLES)
