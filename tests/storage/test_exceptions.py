"""Exceptions as text and back: themselves, with what they hold, and nothing that the text asks for."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from gridfleet.storage.exceptions import (
    MAX_TEXT,
    exception_from_json,
    exception_to_json,
    imported_class,
    imported_class_of,
)


class OfTwoError(Exception):
    """As users write them: other arguments than those of its base."""

    def __init__(self, code: int, where: str) -> None:
        super().__init__(f"{code} at {where}")
        self.code = code
        self.where = where


class SlottedError(ValueError):
    """Says something made of its arguments."""

    __slots__ = ()

    def __str__(self) -> str:
        return " and ".join(map(str, self.args))


class Outer:
    """Holds one."""

    class InnerError(RuntimeError):
        """Lies in a class."""


PLAIN = [
    ValueError("one line"),
    RuntimeError("two\nlines: with a colon"),
    KeyError("missing"),
    KeyError(("a", 1), {"b": [None, True, 1.5, b"\x00\xff", {1, 2}]}),
    FileNotFoundError(2, "No such file or directory", "/no/where"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    NotFittedError("of a library"),
    OfTwoError(3, "home"),
    SlottedError("this", "that"),
    Outer.InnerError("deep"),
    Exception(),
    ValueError("half a pair \ud83d, a NUL \x00"),
    ValueError(10**30, -0.0),
]


@pytest.mark.parametrize("error", PLAIN, ids=repr)
def test_an_exception_comes_back_as_itself(error: Exception) -> None:
    error.add_note("by the way")

    back = exception_from_json(exception_to_json(error))

    assert type(back) is type(error)
    assert (back.args, str(back), vars(back)) == (error.args, str(error), vars(error))
    assert getattr(back, "filename", None) == getattr(error, "filename", None)


def test_numbers_of_all_kinds_come_back() -> None:
    back = exception_from_json(exception_to_json(ValueError(float("inf"), float("nan"), -0.0)))
    assert repr(back.args) == "(inf, nan, -0.0)"

    assert exception_from_json(exception_to_json(SlottedError(np.float64(0.5), np.int64(3)))).args == (0.5, 3)
    # their repr names their class
    assert exception_from_json(exception_to_json(ValueError(1, np.int64(3)))).args == ("(1, np.int64(3))",)


def test_what_is_no_plain_value_stays_where_it_was_raised() -> None:
    error = OfTwoError(3, "home")
    error.model = object()
    assert vars(exception_from_json(exception_to_json(error))) == {"code": 3, "where": "home"}

    assert exception_from_json(exception_to_json(SlottedError(object))).args == (str(SlottedError(object)),)


def test_an_exception_that_is_too_large_or_can_not_be_shown_is_only_named() -> None:
    class Mute(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise RuntimeError

    for error in (ValueError("x" * MAX_TEXT), Mute()):
        described = exception_to_json(error)
        assert json.loads(described)["name"].endswith(type(error).__name__)
        assert exception_from_json(described) is None


def test_a_class_within_a_class_is_found_by_its_whole_name() -> None:
    assert imported_class_of(f"{__name__}.Outer.InnerError", Exception) is Outer.InnerError
    assert imported_class_of("KeyError", Exception) is KeyError
    assert imported_class_of("sklearn.exceptions.NotFittedError", Warning) is None


# attacks: what a table may ask for


def described(**changes: Any) -> str:
    facts = {"module": "builtins", "name": "ValueError", "says": "it", "args": ["it"], "attributes": {}}
    return json.dumps({**facts, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"module": "os", "name": "system"},
        {"module": "not.installed", "name": "Error"},
        {"name": "KeyboardInterrupt"},
        {"name": "SystemExit"},
        {"name": "eval"},
        {"name": "ValueError.__init__"},
        {"name": "__loader__"},
        {"name": ["ValueError"]},
        {"module": None},
        {"says": 3},
        {"name": "KeyError", "says": "something else"},
        {"args": [{"object": "x"}]},
        {"args": [{"list": [{"list": "x", "dict": []}]}]},
        {"attributes": []},
        {"name": "ExceptionGroup", "args": ["it", {"list": []}]},
    ],
    ids=str,
)
def test_what_is_no_exception_is_none(changes: dict[str, Any]) -> None:
    assert exception_from_json(described(**changes)) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", "[" * 100_000, '{"module": 1e999}', "x" * 10_000_000])
def test_what_is_no_description_is_none(text: str) -> None:
    assert exception_from_json(text) is None


def test_no_name_makes_a_module_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that loads at the first look at it, as `importlib.util.LazyLoader` makes them."""
    file = tmp_path / "lazy_module.py"
    file.write_text("raise SystemExit('loaded')")
    spec = importlib.util.spec_from_file_location("lazy_module", file)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "lazy_module", module)

    assert imported_class("lazy_module", "SomeError", Exception) is None
    assert exception_from_json(described(module="lazy_module", name="SomeError")) is None


class Watched(type):
    """Notes what is asked of its classes."""

    asked: ClassVar[list[str]] = []

    def __getattribute__(cls, name: str) -> Any:
        Watched.asked.append(name)
        return super().__getattribute__(name)

    def __call__(cls, *args: Any) -> Any:
        Watched.asked.append("call")
        return super().__call__(*args)


class WatchedError(Exception, metaclass=Watched):
    """Calls and setters of it are noted."""

    def __new__(cls, *args: Any) -> Any:
        Watched.asked.append("new")
        return super().__new__(cls, *args)

    def __init__(self, *args: Any) -> None:
        Watched.asked.append("init")
        super().__init__(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        Watched.asked.append(f"set {name}")

    def work(self) -> str:
        """Is not to be hidden by an attribute."""
        return "work"


def test_nothing_that_a_class_defines_is_called() -> None:
    Watched.asked.clear()

    attributes = {"plain": 1, "work": 2, "__class__": "str", "with_traceback": 3, "not a name": 4, "args": {"list": []}}
    error = exception_from_json(described(module=__name__, name="WatchedError", attributes=attributes))

    assert not {"call", "new", "init", "set plain", "set work"} & set(Watched.asked)
    assert type(error) is WatchedError
    assert vars(error) == {"plain": 1, "args": []}
    assert (error.work(), error.args, error.with_traceback(None)) == ("work", ("it",), error)
