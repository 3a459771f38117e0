"""Configs in Python that lie beside data: read, and nothing of them run. Needs the standard library alone."""

import ast
import math

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
    """What a config in Python inherits from, as far as that is written in it as a literal.

    Args:
        text (str): Of a Python file.

    Returns:
        The value of its last ``_base_``; () if there is none, it has to be computed, or the text is no Python.
    """
    try:
        bases = [
            ast.literal_eval(statement.value)
            for statement in ast.parse(text.removeprefix('\ufeff')).body
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == '_base_'
        ]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return ()
    return bases[-1] if bases else ()


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
