"""What a user is told where the first batch does not go through: which part refused it, and what that was given.

Parts of a network, of a pipeline and of an evaluator stand one by one in a config, and that they do not fit each other
shows when the first batch comes. All that is needed to say so is in the frames of the error's traceback, so nothing
watches over the batches. Later ones went through the same parts: an error of theirs keeps its traceback, which would
take the user as long to get again.

Needs the standard library alone; what it knows of the hosts it uses only where they are imported already.
"""

import inspect
import linecache
import re
import sys

from .places import types

HOSTS = ('torch', 'mmcv', 'mmengine', 'mmdet', 'mmseg', 'mmpretrain')
#: What torch and the hosts say where tensors or arguments are not what a part takes
MISMATCH = re.compile(
    r'\bshapes?\b|\bsizes?\b|\bchannels?\b|\bdimensions?\b|\belements\b|\bdivisible\b|out of (bounds|range)|to unpack'
    r'|Class values|required positional argument|unexpected keyword|positional arguments? but|invalid combination of a'
    r'|must be Tensor|scalar type|same dtype|Input type'
)
MOST = 8  # of a list of tensors, and of a sample's keys


def describe(error, frames, cfg, on_purpose):
    """Say where the first batch was refused.

    Args:
        error (Exception): As it was caught.
        frames (list[frame]): Of its traceback, outermost first.
        cfg (Config or None): What the network and its data were built from.
        on_purpose (bool): Whether mmnorm raised it for the user.

    Returns:
        tuple[str, str] or None: The key of the config, '' if it is not known, and the end of a message. None if the
        batch was not the first, or nothing shows that parts of the config do not fit each other or the data.
    """
    loop, split = _loop(frames)
    if on_purpose if loop is None else not _is_first(loop, frames):
        return None
    found = _in_worker(error) or _in_frames(frames)
    if found is None:
        return None
    owner, kind, package, file, line = found
    if not on_purpose and not _is_mismatch(error, kind, package):
        return None
    tell = dict(module=_of_module, transform=_of_transform, metric=_of_metric, dataset=_of_dataset)[kind]
    place, what = tell(owner, frames, cfg, split)
    first = f'the first batch of {split}_dataloader' if split else 'a batch'
    code = linecache.getline(file, line).strip()
    where = f'{re.sub("^.*/site-packages/", "", file)}, line {line}, "{code}"'
    return place, f'It was raised for {first} by {what}{_content(error)}, in {where}; --traceback shows the rest'


def _loop(frames):
    """The loop of mmengine that was the last to begin, and its split; None and '' if none runs."""
    runner = sys.modules.get('mmengine.runner')
    for frame in reversed(frames):
        owner = frame.f_locals.get('self')
        if runner is not None and isinstance(owner, runner.BaseLoop) and frame.f_code.co_name == 'run':
            splits = (split for split in ('train', 'val', 'test') if getattr(owner.runner, f'_{split}_loop') is owner)
            return owner, next(splits, '')
    return None, ''


def _is_first(loop, frames):
    """Whether a loop has not been through a batch."""
    if hasattr(loop, 'iter'):  # of a training, which says how many there were
        return loop.iter == 0
    numbers = [frame.f_locals.get('idx') for frame in frames if frame.f_locals.get('self') is loop]
    in_batch = any(frame.f_code.co_name == 'run_iter' for frame in frames)
    return numbers[0] is None or (numbers[0] == 0 and in_batch)


def _in_frames(frames):
    """The innermost part of the run, its kind, the package that raised, and file and line of the part's own code."""
    for frame in reversed(frames):
        kind = _kind(type(frame.f_locals.get('self')))
        if kind:
            package = frames[-1].f_globals.get('__name__', '')
            return frame.f_locals['self'], kind, package, frame.f_code.co_filename, frame.f_lineno
    return None


def _outermost(kind, frames):
    """The part of a kind in which the others are; None if there is none."""
    owners = (frame.f_locals.get('self') for frame in frames)
    return next((owner for owner in owners if _kind(type(owner)) == kind), None)


def _kind(kind):
    """Which part of a run a class is: 'module', 'transform', 'metric', 'dataset' or ''."""
    bases = dict(
        module=('torch.nn', 'Module'),
        transform=('mmcv.transforms', 'BaseTransform'),
        metric=('mmengine.evaluator', 'BaseMetric'),
        dataset=('mmengine.dataset', 'BaseDataset'),
    )
    found = (
        part for part, (module, name) in bases.items() if issubclass(kind, getattr(sys.modules.get(module), name, ()))
    )
    return next(found, '')


def _in_worker(error):
    """As :func:`_in_frames`, of an error in a data loader's process, by its text; the part is a class."""
    places = re.findall(r'^  File "(.+)", line (\d+), in ', str(error), re.MULTILINE)
    by_file = {getattr(module, '__file__', None): module for module in list(sys.modules.values())}
    for file, line in reversed(places):
        for kind in vars(by_file.get(file, object)).values():
            if inspect.isclass(kind) and kind.__module__ == by_file[file].__name__ and _kind(kind) == 'transform':
                lines, first = inspect.getsourcelines(kind)
                if first <= int(line) < first + len(lines):
                    package = getattr(by_file.get(places[-1][0]), '__name__', '')
                    return kind, 'transform', package, file, int(line)
    return None


def _is_mismatch(error, kind, package):
    """Whether an error says that parts do not fit each other or the data; one of which it is not known may be a bug."""
    element = getattr(sys.modules.get('mmengine.structures'), 'BaseDataElement', ())
    of_host = package.partition('.')[0] in HOSTS
    if isinstance(error, AttributeError):  # a sample lacks something, or a part of the config that is None
        return isinstance(error.obj, element) or (error.obj is None and of_host)
    if kind == 'dataset':
        return type(error) is Exception
    if isinstance(error, KeyError):
        return of_host or kind == 'transform'
    if isinstance(error, (AssertionError, IndexError)) and of_host:
        return True
    if isinstance(error, ZeroDivisionError) or (isinstance(error, (TypeError, ValueError)) and package[:6] == 'torch.'):
        return of_host  # a number of the config
    return (
        isinstance(error, (RuntimeError, ValueError, TypeError, IndexError))
        and not package.startswith('mmnorm.')
        and bool(MISMATCH.search(str(error)))
    )


def _of_module(module, frames, cfg, split):
    named = _outermost('module', frames).named_modules()
    name = next((name for name, inner in named if inner is module), '')
    while name == 'module' or name.startswith('module.'):  # of what wraps a network
        name = name[len('module.') :]
    place, part = 'model', (cfg or {}).get('model')
    inner = part
    for step in name.split('.') if name else ():
        of_list = isinstance(inner, (list, tuple)) and step.isdecimal() and int(step) < len(inner)
        inner = inner[int(step)] if of_list else inner.get(step) if isinstance(inner, dict) else None
        if not isinstance(inner, (dict, list, tuple)):
            break
        place, part = f'{place}.{step}', inner
    numbers = part.items() if isinstance(part, dict) else ()
    numbers = ', '.join(f'{key}={value}' for key, value in numbers if _is_number(value))
    given = _given(module, frames)
    what = f'{name or "the model"} ({type(module).__name__})'
    what += f', which got {given}' * bool(given) + f' ({place} has {numbers})' * bool(numbers)
    return place * bool(cfg), what


def _is_number(value):
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_is_number, value))
    return isinstance(value, int) and not isinstance(value, bool)


def _given(module, frames):
    """The shapes of a module's input tensors (str)."""
    own = [frame for frame in frames if frame.f_locals.get('self') is module]
    called = [frame for frame in own if frame.f_code.co_name == '_call_impl']
    if called:
        return _shapes([*called[-1].f_locals['args'], *called[-1].f_locals['kwargs'].values()]).strip('[]')
    code = own[-1].f_code
    return _shapes({name: own[-1].f_locals.get(name) for name in code.co_varnames[1 : code.co_argcount]}).strip('{}')


def _shapes(value):
    """The shapes of the tensors in a value (str); '' if it has none."""
    if isinstance(value, sys.modules['torch'].Tensor):
        return 'x'.join(map(str, value.shape)) or 'a number'
    named = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, (list, tuple)) else {}
    shapes = {key: shape for key, inner in named.items() if (shape := _shapes(inner))}
    if not shapes:
        return ''
    texts = [f'{key} {shape}' if isinstance(value, dict) else shape for key, shape in shapes.items()]
    text = ', '.join(texts[:MOST]) + ', ...' * (len(texts) > MOST)
    return f'{{{text}}}' if isinstance(value, dict) else f'[{text}]'


def _of_transform(transform, frames, cfg, split):
    kind = transform if inspect.isclass(transform) else type(transform)
    what = f'{kind.__name__} of the pipeline'
    own = [frame for frame in frames if frame.f_locals.get('self') is transform]
    samples = [value for frame in own for name, value in frame.f_locals.items() if isinstance(value, dict)]
    if samples:
        keys = list(samples[-1])
        what += f', whose sample has {", ".join(map(str, keys[:MOST]))}' + ', ...' * (len(keys) > MOST)
    data = _outermost('dataset', frames)
    if not split and data is not None:
        split = 'test' if data.test_mode else 'train'
    part = (cfg or {}).get(f'{split}_dataloader')
    places = [place for place, name in types(part) if name.rpartition('.')[2] == kind.__name__]
    return f'{split}_dataloader.{places[0]}' if len(set(places)) == 1 else f'{split}_dataloader' * bool(part), what


def _of_metric(metric, frames, cfg, split):
    return f'{split or "test"}_evaluator', type(metric).__name__


def _of_dataset(dataset, frames, cfg, split):
    return f'{split}_dataloader' * bool(split), f'{type(dataset).__name__}'


def _content(error):
    """What the part of a sample has in which something is missing (str)."""
    if not isinstance(error, AttributeError) or error.obj is None:
        return ''
    names = [*error.obj.keys(), *error.obj.metainfo_keys()]
    return f', to which a sample came with {", ".join(names[:MOST]) or "nothing"}' + ', ...' * (len(names) > MOST)
