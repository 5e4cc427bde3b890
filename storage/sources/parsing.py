"""Python sources as trees, in one thread at a time."""

from __future__ import annotations

import ast
from collections.abc import Callable
from threading import Lock
from typing import TypeVar

Source = TypeVar("Source")
Parsed = TypeVar("Parsed")

_parses = Lock()


def parse(source: bytes) -> ast.Module:
    """Parse a source, whatever other threads parse.

    Raises
    ------
    SyntaxError, ValueError, RecursionError
        If it can't be parsed.
    """
    return parsing(ast.parse, source)


def parsing(function: Callable[[Source], Parsed], source: Source) -> Parsed:
    """Call a function that parses, of which no two run at once.

    CPython before 3.11.8 and 3.12.2 counts how deep a tree is for all threads of a process together: threads that take
    turns within ``ast.parse`` get "AST constructor recursion depth mismatch" (gh-106905). Other code of the process
    may parse too, hence once more.
    """
    with _parses:
        try:
            return function(source)
        except SystemError:
            return function(source)
