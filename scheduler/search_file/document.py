"""A YAML file as YAML 1.2 reads it, with the line of every key, so that errors can name it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gridfleet.storage.errors import InvalidSearchError, first_line

#: Bytes of a file: PyYAML takes some hundred times as much memory.
MAX_BYTES = 5_000_000
#: Values of a file, each alias counted as what it stands for.
MAX_VALUES = 100_000
#: Digits of an integer: Python's own bound is 4,300, beyond which it neither reads nor shows one.
MAX_DIGITS = 1_000
#: Characters of a value that is quoted in an error.
MAX_SHOWN = 80
#: Characters of a sentence about a value.
MAX_SENTENCE = 1_000
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
        said = f"{key}{problem}"  # the value is in it, whatever its length
        return InvalidSearchError(f"{self.path}{line}: {said[:MAX_SENTENCE]}{'…' if len(said) > MAX_SENTENCE else ''}")


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
        If it can't be read, is too large or not YAML, has a key twice, or a value that is none of YAML's core.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, no UTF-8
        raise InvalidSearchError(_not_read(path, error)) from error
    if len(raw) > MAX_BYTES:
        raise InvalidSearchError(f"{path} has more than {MAX_BYTES} bytes, which a search file may have")
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


def _not_read(path: Path, error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"{path} is not a text file in UTF-8: {error.reason}"
    return f"{path} can't be read: {getattr(error, 'strerror', None) or error}"


def shown(place: Sequence[str | int]) -> str:
    """Show a place as ``data.target`` or ``space[1].C``."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


class _Loader(yaml.SafeLoader):
    """PyYAML speaks YAML 1.1, in which 1e-4 is a text, ``no`` is False and 010 is 8."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own name and type

    @classmethod
    def resolve_plain(cls, text: str) -> str:
        """Return what a text is that has neither tag nor quotes."""
        resolvers = cls.yaml_implicit_resolvers.get(text[:1], [])
        return next((tag for tag, pattern in resolvers if pattern.match(text)), f"{TAG}str").removeprefix(TAG)


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
#: How the core of YAML 1.2 reads its scalars; PyYAML's own constructors know the tags and the numbers of YAML 1.1.
SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda _: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": lambda text: float(re.sub(r"\.(?=[iInN])", "", text)),
    "str": str,
}
TAG = "tag:yaml.org,2002:"


def _construct_scalar(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    return SCALARS[node.tag.removeprefix(TAG)](loader.construct_scalar(node))


for _kind in SCALARS:
    _Loader.add_constructor(TAG + _kind, _construct_scalar)


def _check_tag(node: yaml.Node, *, is_key: bool = False) -> None:
    """Refuse a tag that is not in YAML's core, and a scalar that is not what its tag says."""
    kind = node.tag.removeprefix(TAG)
    problem = None
    if is_key and kind == "merge":
        return
    if is_key and not isinstance(node, yaml.ScalarNode):
        problem = "a key has to be a single value"
    elif kind not in {yaml.ScalarNode: SCALARS, yaml.SequenceNode: ("seq",), yaml.MappingNode: ("map",)}[type(node)]:
        problem = f"the tag {node.tag!r} is not one of a search file; leave it out"
    elif isinstance(node, yaml.ScalarNode):
        found = _Loader.resolve_plain(node.value)
        if kind != "str" and found != kind and (kind, found) != ("float", "int"):
            problem = f"{node.value[:MAX_SHOWN]!r} is no {kind}"
        elif kind == "int" and len(node.value) > MAX_DIGITS:
            problem = f"an integer of more than {MAX_DIGITS} digits is no value of a search file"
    if problem is not None:
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _note_lines(node: yaml.Node, place: Place, lines: dict[Place, int], path: Path) -> None:
    if len(lines) > MAX_VALUES:  # aliases of aliases: a file of ten lines may mean billions
        raise InvalidSearchError(f"{path} has more than {MAX_VALUES} values")
    _check_tag(node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*place, index)] = item.start_mark.line + 1
            _note_lines(item, (*place, index), lines, path)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        _check_tag(key, is_key=True)
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
