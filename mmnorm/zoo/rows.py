"""The papers' tables: every config, what it should contain, and what the paper measured. Knows no network."""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

HOME = Path(__file__).resolve().parents[1] / '.mim'  # of configs and model-index, in a checkout and installed
METAFILE = HOME / 'configs/metafile.yml'
PAPERS = ('xbn', 'evalnorm', 'sn', 'rbn', 'bgn')
#: All of them: the first has the papers, detection and segmentation, and says what an entry is
METAFILES = (METAFILE, *(HOME / f'configs/{paper}/classification/metafile.yml' for paper in PAPERS))
TASKS = (
    'object detection',
    'instance segmentation',
    'panoptic segmentation',
    'semantic segmentation',
    'classification',
)
MODES = ('frozen', 'live', 'scratch')
DATA = ('COCO', 'ADE20K', 'Cityscapes', 'ImageNet', 'CIFAR-10', 'CIFAR-100', 'digits')
# What a list shows of the metrics: the first of each kind, and all of classification
HEADLINE = ('AP^bbox', 'AP^mask', 'PQ', 'mIoU', 'mIoU (ms)', 'top-1', 'top-5', 'top-1 error', 'top-5 error')


@dataclass(frozen=True)
class Paper:
    """One of the papers: its title with where and when it appeared, and its address."""

    title: str
    url: str


@dataclass(frozen=True)
class Published:
    """One row of a paper's table.

    Attributes:
        table: Paper and number, 'xbn Table 4, A4'.
        row: What the paper calls it.
        data: What it was measured on, 'COCO val2017'.
        metrics: Figures in percent under the names that reports use, 'AP^bbox' or 'mIoU (ms)'; {} if the paper only
            draws them.
        options: What its test adds to the config by ``--cfg-options``.
    """

    table: str
    row: str
    data: str
    metrics: dict
    options: dict = field(default_factory=dict)

    @property
    def headline(self):
        """What a list shows of the metrics (str): the first of boxes, of masks, of panoptic and of semantic maps."""
        return ', '.join(f'{key} {self.metrics[key]}' for key in HEADLINE if key in self.metrics)


@dataclass(frozen=True)
class Model:
    """One config of the zoo; the header of ``configs/metafile.yml`` says what each value means.

    Of a row that has no config (:func:`load_rows_without_config`) name, config and norms are empty.
    """

    name: str
    config: str
    paper: str
    task: str
    norm: str
    mode: str
    backbone: str
    data: str
    norms: dict
    pretrained: dict = field(default_factory=dict)
    placed: str = ''
    published: tuple = ()
    sweep: dict = field(default_factory=dict)
    note: str = ''
    training: dict = field(default_factory=dict)

    @property
    def path(self):
        """Where the config is (Path)."""
        return HOME / self.config


def load_zoo(path=None):
    """Read the metafiles.

    Args:
        path (str, Path or None): Of one. Default: all of this checkout or installation.

    Returns:
        dict[str, Model]: By name, in the order of the files.

    Raises:
        FileNotFoundError: There is none.
        ValueError: An entry is incomplete or has a key or value that is not known; it is named.
    """
    paths = METAFILES if path is None else [path]
    models = [_read_model(entry) for path in paths for entry in _read_metafile(path)['Models']]
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'{", ".join(map(str, paths))} have two entries named {double}')
    return dict(zip(names, models))


def load_rows_without_config():
    """Read the rows of the papers' tables that have figures and no config yet (list[Model]); ``note`` says why."""
    entries = [entry for path in METAFILES for entry in _read_metafile(path).get('Without Config', ())]
    return [_read_model({'Name': '', 'Config': '', 'Norms': {}} | entry) for entry in entries]


def load_papers():
    """Read what the metafile says of the papers (dict[str, Paper]), by their names here."""
    papers = {entry['Name']: entry['Paper'] for entry in _read_metafile(METAFILE)['Collections']}
    return {name: Paper(papers[name]['Title'], papers[name]['URL']) for name in PAPERS}


def _read_metafile(path):
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path} does not exist: the list of configs comes with mmnorm, install it again')
    # an eighth of the time that safe_load takes, where yaml was built with it
    return yaml.load(Path(path).read_text(), getattr(yaml, 'CSafeLoader', yaml.SafeLoader))


def _read_model(entry):
    name = entry.get('Name') or entry
    try:
        entry = dict(entry)
        metadata = dict(entry.pop('Metadata'))
        model = Model(
            entry.pop('Name'),
            entry.pop('Config'),
            entry.pop('In Collection'),
            metadata.pop('Task'),
            metadata.pop('Norm'),
            metadata.pop('Mode'),
            metadata.pop('Backbone'),
            metadata.pop('Data'),
            _norms_as_text(entry.pop('Norms')),
            entry.pop('Pretrained', {}),
            entry.pop('Placed', ''),
            tuple(
                Published(**{key.lower(): value for key, value in row.items()}) for row in entry.pop('Published', ())
            ),
            entry.pop('Sweep', {}),
            entry.pop('Note', ''),
            entry.pop('Training', {}),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f'entry {name} of the metafile is incomplete: {error}') from error
    if entry or metadata:
        raise ValueError(f'entry {name} of the metafile has unknown keys: {", ".join([*entry, *metadata])}')
    for value, known in ((model.paper, PAPERS), (model.task, TASKS), (model.mode, MODES), (model.data, DATA)):
        if value not in known:
            raise ValueError(f'entry {name} of the metafile: {value!r} is not one of {", ".join(known)}')
    return model


def _norms_as_text(norms):
    return {part: {kind: str(count) for kind, count in kinds.items()} for part, kinds in norms.items()}


def find_model(config, zoo=None):
    """Find the entry (Model) that a config file is, or else the nearest that it inherits from; None if there is none.

    Args:
        config (str or Path): Its path, wherever the repository is, or only its name. What it inherits from is found
            only if the file is there; nothing of it is run.
        zoo (dict[str, Model] or None): Default: that of :func:`load_zoo`.
    """
    zoo = load_zoo() if zoo is None else zoo
    name = Path(config).stem
    if name not in zoo and Path(config).is_file():
        name = next((base for base in reversed(_inherited(config)) if base in zoo), None)
    return zoo.get(name)


def _inherited(config, seen=()):
    """Names of the configs that a config file (path) inherits from, the nearest last; nothing of it is run."""
    from mmnorm.literals import read_bases  # here and not above: it imports mmnorm, and so torch

    try:
        text = Path(config).read_text(encoding='utf-8')
        bases = read_bases(text) if Path(config).suffix == '.py' else yaml.safe_load(text).get('_base_', [])
    except (OSError, ValueError, AttributeError, yaml.YAMLError):  # where it is run, it is told
        return []
    names = []
    for base in bases if isinstance(bases, (list, tuple)) else [bases]:
        path = (Path(config).parent / str(base)).resolve()  # that of mmdet::NAME.py, say, is not there
        if path.is_file() and path not in seen:
            names += _inherited(path, (*seen, path))
        names.append(path.stem.rpartition('::')[2])
    return names
