"""What a command says when it cannot go on: one message for a mistake of the user, nothing for a bug.

Mistakes are what mmnorm raises on purpose, what the operating system and the import system refuse, and whatever is
raised while something is built from a config (a model, a data set, a hook, a loop), or where parts that were built do
not take the first batch (:mod:`.first_batch`). For the last two, the message starts with the file and the key. That
other processes of a run are gone is told as well. Everything else is a bug, of ours or of a host, whose traceback is
worth more than a message.

Needs the standard library alone; what it knows of mmengine it uses only where that is imported already.
"""

import dis
import inspect
import json
import os
import re
import sys
import time
import traceback
from difflib import get_close_matches
from pathlib import Path

from .first_batch import describe
from .light import HOME, light
from .places import config_of, find, types

terminal = light('terminal')
OURS = str(HOME) + os.sep
LONGEST = 400  # letters of another package's message: some have a whole config in it
# as mmengine and mmcv say
UNKNOWN = re.compile(r'is not in the .* registry|Cannot find .* in registry|Failed to get\b|None is not a callable')
# what the kernel or another process did, and what no config is to blame for
OUT_OF_MEMORY = ('MemoryError', 'OutOfMemoryError')


def message_of(error):
    """What to tell the user of an error.

    Args:
        error (Exception): As it was caught.

    Returns:
        str or None: None if there is nothing to tell.
    """
    if lost_process(error):
        reason = re.sub(r'\[\S+:\d+\] ', '', _text(error)).partition('. ')[0]  # without the place in C++, and guesses
        return (
            f'another process of this run is gone, or did not answer in time: {reason}. If it has not said why, its '
            'machine or the network failed. Start the run again on all machines, a training with --resume'
        )
    if isinstance(error, OSError):
        error = light('files').as_write_error(error)
    frames = [(frame, trace.tb_lasti) for trace in _traces(error) for frame in [trace.tb_frame]]
    built = _built(frames)
    if built:
        return _with_place(error, built, frames)
    if type(error).__name__ in OUT_OF_MEMORY or 'CPUAllocator: ' in str(error):
        return f'out of memory: {_text(error)}. Smaller batches or images need less'
    if isinstance(error, (OSError, ImportError)):
        return _text(error)
    on_purpose, cfg = _on_purpose(error, frames), config_of(frame for frame, _ in frames)
    refused = describe(error, [frame for frame, _ in frames], cfg, on_purpose)
    if refused:
        place, where = refused
        return ': '.join(filter(None, [getattr(cfg, 'filename', None), place, f'{_text(error).rstrip(".")}. {where}']))
    return _text(error) if on_purpose else None


def lost_process(error):
    """Whether an error is that other processes of the run are gone or do not answer; gloo has no type for it."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {'DistNetworkError', 'DistStoreError'}) or ('RuntimeError' in names and '/gloo/' in str(error))


def tell(message):
    """Print a message for the user, once for all ranks that end with it.

    Args:
        message (str): Without 'error: ', or with it.
    """
    message = terminal.printable('error: ' + message.removeprefix('error: '))
    file = os.environ.get('TORCHELASTIC_ERROR_FILE')
    if file:  # torchrun shows the message of the rank that was the first to fail
        about = dict(py_callstack=message, timestamp=str(int(time.time())))
        Path(file).write_text(json.dumps(dict(message=dict(message=message, extraInfo=about))), encoding='utf-8')
    elif terminal.on_first_rank():
        print(message, file=sys.stderr)
    else:  # which may be the only one with this error
        print(f'rank {terminal.rank()}: {message.splitlines()[0]}', file=sys.stderr)


def nearest(name, names, number=3):
    """The end of a message about a wrong name (str): which of the right ones are like it; '' if none is."""
    known = {str(right).lower(): str(right) for right in names}
    found = [known[near] for near in get_close_matches(str(name).lower(), known, number, 0.5)]
    return f'; nearest: {", ".join(found)}' if found else ''


def _traces(error):
    trace = error.__traceback__
    while trace:
        yield trace
        trace = trace.tb_next


def _on_purpose(error, frames):
    """Whether mmnorm, or a hook that checks something, has raised an error, so that its message is for the user."""
    if not frames:
        return False
    frame, at = frames[-1]
    ours = frame.f_code.co_filename.startswith(OURS) and not isinstance(error, AssertionError)
    hooks = sys.modules.get('mmengine.hooks')
    of_hook = hooks is not None and isinstance(frame.f_locals.get('self'), hooks.Hook)
    return (ours or of_hook) and dis.opname[frame.f_code.co_code[at]] == 'RAISE_VARARGS'


def _built(frames):
    """Frames of functions that were building something from a config, from the outermost to where they failed.

    Empty where no config was to blame: outside all of them, or in the run of a loop.
    """
    runner = sys.modules.get('mmengine.runner')
    if runner is None:
        return []
    found = []
    for frame, _ in frames:
        name, owner = frame.f_code.co_name, frame.f_locals.get('self')
        if isinstance(owner, runner.BaseLoop) and name == 'run':
            return []
        starts = isinstance(owner, runner.Runner) and name not in ('train', 'val', 'test', 'call_hook')
        if starts or re.match('_?build(_|$)', name):
            found.append(frame)
    return found


def _with_place(error, built, frames):
    """The message of an error in what was built from a config, with the file and the key."""
    cfg = config_of(frame for frame, _ in frames)
    place, part = '', cfg
    for frame in built if cfg is not None else ():
        inside = not _of_runner(frame)  # which builds a loop, and for it parts that are beside it
        named = re.sub('^(build|register)_', '', frame.f_code.co_name)
        if not inside and cfg.get(named) is not None:
            place, part = named, cfg[named]
        for value in _arguments(frame):
            key = find(part if inside else cfg, value)
            if key is not None:
                place, part = f'{place if inside else ""}.{key}'.strip('.'), value
    told = isinstance(error, OSError) or _raised_by_us(error)  # which names what it is about
    names = [str(cfg.filename)] if getattr(cfg, 'filename', None) and (place or not told) else []
    return ': '.join([*names, *filter(None, [place]), _reason(error, built[-1], part)])


def _of_runner(frame):
    return frame.f_code.co_filename == sys.modules['mmengine.runner.runner'].__file__


def _arguments(frame):
    """Values of a function's arguments that may be parts of a config."""
    if frame.f_code.co_name == '__init__':  # of the Runner: all parts at once
        return []
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    values = [frame.f_locals[name] for name in names if isinstance(frame.f_locals.get(name), (dict, list))]
    return values if len(values) == 1 or not _of_runner(frame) else []  # which of several it was is not known


def _reason(error, frame, part):
    """What is wrong with a part of a config."""
    text = _text(error)
    unknown = _unknown_type(frame, part) if UNKNOWN.search(text) else None
    if unknown:
        return unknown
    keyword = re.search(r"unexpected keyword argument '(\w+)'", text)
    if keyword:
        classes = inspect.getmro(frame.f_locals.get('obj_cls', object))
        names = {name for kind in classes for name in inspect.signature(kind.__init__).parameters}
        return text + nearest(keyword[1], names - {'self', 'args', 'kwargs'})
    return text


def _unknown_type(frame, part):
    """What to say of the first ``type`` in a part of a config that no registry has; None if all are known."""
    registries = [value for name, value in vars(sys.modules['mmengine.registry']).items() if name.isupper()]
    local = frame.f_locals.get('registry')
    for place, name in types(part):
        if not any(_has(registry, name) for registry in registries):
            known = [local] if hasattr(local, 'module_dict') and not place else registries
            names = {right for registry in known for level in _levels(registry) for right in level.module_dict}
            return f'{place}{": " * bool(place)}nothing is registered as {name!r}{nearest(name, names)}'
    return None


def _has(registry, name):
    try:
        with registry.switch_scope_and_registry(None) as of_scope:
            return of_scope.get(name) is not None
    except RuntimeError:  # what is not even the name of an object anywhere
        return False


def _levels(registry):
    while registry is not None:
        yield registry
        registry = registry.parent


def _text(error):
    """An error's message in one line, with the name of its type where that is part of the message."""
    lines = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip().splitlines()
    if len(lines) > 1 and 'Original Traceback' in str(error):  # of a data loader's worker
        return lines[-1].strip()
    text = ' '.join(' '.join(lines).split())
    if not text:
        return f'{type(error).__name__} at {traceback.extract_tb(error.__traceback__)[-1].line}'
    if len(text) > LONGEST and not _raised_by_us(error):
        text = f'{text[:LONGEST]} ...'
    plain = isinstance(error, (OSError, ImportError)) or _raised_by_us(error)
    return text if plain else f'{type(error).__name__}: {text}'


def _raised_by_us(error):
    return _on_purpose(error, [(trace.tb_frame, trace.tb_lasti) for trace in _traces(error)])
