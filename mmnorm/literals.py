"""Configs in Python that lie beside data: read, and nothing of them run. Needs the standard library alone."""

import ast
import math
from importlib.util import find_spec

_FLOATS = dict(inf=math.inf, nan=math.nan)  # as Python, and so a dumped config, writes them


def read_dump(text):
    """Read a config as mmengine dumps it: assignments of literals and of calls of ``dict()``.

    Args:
        text (str): Of a Python file.

    Returns:
        dict: What is assigned, by name.

    Raises:
        ValueError: It is more than that, or no Python; the place is named.
    """
    config = {}
    try:
        for statement in ast.parse(text.removeprefix('\ufeff')).body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    config[name] = _read(value)
                case _:
                    raise _more(statement)
    except SyntaxError as error:
        raise ValueError(f'line {error.lineno} is not Python ({error.msg})') from error
    except (RecursionError, MemoryError) as error:
        raise ValueError('it is nested too deeply') from error
    except TypeError as error:  # a list as a key
        raise ValueError(str(error)) from error
    return config


def read_bases(text):
    """What a config in Python inherits from, as far as that can be told without running it.

    Args:
        text (str): Of a Python file.

    Returns:
        list[str]: Of its last ``_base_``, the texts that are literals or begin with the folder of an installed
        package, ``f"{__import__('mmnorm').__path__[0]}/..."``; [] if there is none, or the text is no Python.
    """
    try:
        bases = [
            statement.value
            for statement in ast.parse(text.removeprefix('\ufeff')).body
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == '_base_'
        ]
        nodes = bases[-1:] and getattr(bases[-1], 'elts', bases[-1:])
        return [base for base in map(_read_base, nodes) if base]
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # of no Python, or of a package without a place
        return []


def _read_base(node):
    """A path (str) to inherit from; '' if it has to be computed in another way."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
            return _read_base(value)
        case ast.JoinedStr(values=parts):
            read = [_read_base(part) for part in parts]
            return ''.join(read) if all(read) else ''
        case ast.Subscript(
            value=ast.Attribute(
                value=ast.Call(func=ast.Name(id='__import__'), args=[ast.Constant(value=str(name))], keywords=[]),
                attr='__path__',
            ),
            slice=ast.Constant(value=0),
        ) if name.isidentifier():  # not NAME.PART, of which NAME would be imported
            found = find_spec(name)
            return found.submodule_search_locations[0] if found and found.submodule_search_locations else ''
    return ''


def _read(node):
    """The value of an expression."""
    match node:
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=keywords) if all(word.arg for word in keywords):
            return {word.arg: _read(word.value) for word in keywords}
        case ast.Call(func=ast.Name(id='dict'), args=[ast.Dict() as content], keywords=[]):
            return _read(content)
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_literal(key): _read(value) for key, value in zip(keys, values)}
        case ast.List(elts=elements):
            return [_read(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_read(element) for element in elements)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id=name)) if name in _FLOATS:
            return -_FLOATS[name]
        case ast.Name(id=name) if name in _FLOATS:
            return _FLOATS[name]
    return _literal(node)


def _literal(node):
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        raise _more(node) from None


def _more(node):
    return ValueError(
        f'line {node.lineno} is more than literals and calls of dict(), which is all that a dumped config is'
    )
