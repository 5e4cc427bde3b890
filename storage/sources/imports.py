"""Which modules some code imports, inside its functions as well."""

from __future__ import annotations

import ast
import dis
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from gridfleet.storage.sources.parsing import parse

#: Characters of the name of a file.
MAX_NAME = 255
_SPACE = r"(?:[ \t]|\\\r?\n)+"
_FROM = re.compile(rf"(?:^|[;:])[ \t]*from{_SPACE}(\w+)", re.MULTILINE)
_IMPORT = re.compile(rf"(?:^|[;:])[ \t]*import{_SPACE}((?:[^\n;#\\]|\\\r?\n)+)", re.MULTILINE)


def mentioned_names(source: bytes) -> set[str]:
    """Return the names of the top-level modules that a source may import: text in its comments may look the same."""
    text = source.decode(errors="replace")
    mentioned = set(_FROM.findall(text))
    for names in _IMPORT.findall(text):
        mentioned.update(name.strip(" \t\r\n\\").partition(" ")[0].partition(".")[0] for name in names.split(","))
    return mentioned - {""}


@lru_cache(maxsize=256)  # searches of one script ask for the same sources again and again
def imported_names(source: bytes) -> frozenset[str]:
    """Return the names of the top-level modules that a source imports, in any of its statements.

    It takes a second for each MB, where `mentioned_names` takes 10 ms. Relative imports stay within their package, and
    are none. A source that can't be parsed imports nothing.
    """
    try:
        tree = parse(source)
    except (SyntaxError, ValueError, RecursionError):  # of another Python, a template: nobody can import it either
        return frozenset()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module)
    return frozenset(name.partition(".")[0] for name in names)


@lru_cache(maxsize=256)
def texts_beside_file(source: bytes) -> frozenset[str]:
    """Return the texts of a module that uses ``__file__``: they may be the names of files that lie beside it."""
    if b"__file__" not in source:
        return frozenset()
    try:
        tree = parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return frozenset()
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return frozenset(text for text in constants if isinstance(text, str) and len(text) <= MAX_NAME)


def imported_by(values: Iterable[Any], module: str) -> set[str]:
    """Return the names of the top-level modules that functions and classes import: for notebooks, without a source.

    Parameters
    ----------
    values : iterable of object
        The values of a module.
    module : str
        Its name: what it imported from elsewhere does not count.
    """
    names: set[str] = set()
    for value in values:
        for code in _codes(value, module):
            names.update(
                step.argval.partition(".")[0] for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME"
            )
    return names - {""}


def _codes(value: Any, module: str) -> Iterator[CodeType]:
    if getattr(value, "__module__", None) != module:
        return
    if isinstance(value, type):
        for attribute in list(vars(value).values()):
            yield from _codes(getattr(attribute, "__func__", attribute), module)
        return
    value = getattr(value, "__wrapped__", value)
    if isinstance(value, FunctionType):
        yield from with_inner(value.__code__)


def with_inner(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function, and of the functions that are made in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from with_inner(constant)
