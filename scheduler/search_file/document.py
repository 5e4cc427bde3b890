"""A YAML file as YAML 1.2 reads it, with the line of every key, so that errors can name it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gridfleet.storage.errors import InvalidSearchError, first_line

#: Values of a file, each alias counted as what it stands for.
MAX_VALUES = 100_000
#: The place of a value: keys and indices from the top.
Place = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """The content of a file, and where each part of it stands."""

    path: Path
    content: Any
    lines: Mapping[Place, int]

    def refuse(self, place: Sequence[str | int], problem: str) -> InvalidSearchError:
        """Return the error for one value.

        Parameters
        ----------
        place : sequence of str or int
            Where it stands; the line is that of the nearest place around it that the file has.
        problem : str
            What is wrong and what is expected.
        """
        known = next((tuple(place[:n]) for n in range(len(place), 0, -1) if tuple(place[:n]) in self.lines), None)
        line = f", line {self.lines[known]}" if known is not None else ""
        key = f"`{shown(place)}` " if place else ""
        return InvalidSearchError(f"{self.path}{line}: {key}{problem}")


def read_document(path: Path) -> Document:
    """Read a YAML file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    Document

    Raises
    ------
    InvalidSearchError
        If it can't be read, is not YAML, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidSearchError(f"{path} can't be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidSearchError(f"{path} is not a text file in UTF-8: {error.reason}") from error
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:  # a control character
        raise InvalidSearchError(f"{path} is not YAML: {_where(error)}") from error
    try:
        node = loader.get_single_node()
        lines: dict[Place, int] = {}
        if node is not None:
            _note_lines(node, (), lines, path)
        content = loader.construct_document(node) if node is not None else None
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidSearchError(f"{path} is not YAML: {_where(error)}") from error
    finally:
        loader.dispose()
    return Document(path, content, lines)


def shown(place: Sequence[str | int]) -> str:
    """Show a place as ``data.target`` or ``space[1].C``."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


class _Loader(yaml.SafeLoader):
    """PyYAML speaks YAML 1.1, in which 1e-4 is a text, ``no`` is False and 010 is 8."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own name and type


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+\Z"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<\Z"), ["<"])
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _note_lines(node: yaml.Node, place: Place, lines: dict[Place, int], path: Path) -> None:
    if len(lines) > MAX_VALUES:  # aliases of aliases: a file of ten lines may mean billions
        raise InvalidSearchError(f"{path} has more than {MAX_VALUES} values")
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*place, index)] = item.start_mark.line + 1
            _note_lines(item, (*place, index), lines, path)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*place, str(key.value))
        line = key.start_mark.line + 1
        if here in lines:
            raise InvalidSearchError(
                f"{path}, line {line}: `{shown(here)}` is there twice, first in line {lines[here]}"
            )
        lines[here] = line
        _note_lines(value, here, lines, path)


def _where(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return first_line(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', error)}"
