"""Who may write results runs no code where they are read: exceptions and warnings are names and plain values."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gridfleet.scheduler.reports.trial_reader import GivenWarning
from gridfleet.scheduler.results import fit_warnings
from gridfleet.scheduler.results.reproduction import RecordedTrial, _differences, _environment
from gridfleet.storage.errors import TrialFailedError
from gridfleet.worker.trial.scores import rebuild_exception
from tests.warned import all_warnings

#: What Python itself reports of code that is loaded or run, files and processes.
FORBIDDEN = ("import", "exec", "compile", "open", "pickle.find_class", "os.", "subprocess.", "socket.", "ctypes.")

_seen: list[str] | None = None


def _note(event: str, _: Any) -> None:
    if _seen is not None and event.startswith(FORBIDDEN):
        _seen.append(event)


@pytest.fixture(scope="module", autouse=True)
def audited() -> None:
    """Ask Python to report; it never stops."""
    sys.addaudithook(_note)


@contextmanager
def nothing_is_run() -> Iterator[None]:
    global _seen
    modules = set(sys.modules)
    _seen = events = []
    try:
        yield
    finally:
        _seen = None
    assert (events, set(sys.modules) - modules) == ([], set())


#: Classes and what is none, as a table may name them.
NAMES = [
    ("os", "system"),
    ("antigravity", "Error"),
    ("this", "Error"),
    ("scipy.odr", "OdrError"),
    ("sklearn", "datasets.Error"),
    ("builtins", "SystemExit"),
    ("builtins", "__import__"),
    ("subprocess", "Popen"),
    ("subprocess", "CalledProcessError.__init__.__globals__.os.system"),
    ("../../etc/passwd", "Error"),
    ("gridfleet.storage.exceptions", "json.JSONDecodeError"),
]


@pytest.mark.parametrize(("module", "name"), NAMES, ids=str)
def test_no_name_of_an_exception_runs_anything(module: str, name: str) -> None:
    for args in ([], ["id"], [{"dict": [["os", "id"]]}], [{"bytes": "gASVAAAA"}]):
        described = json.dumps(
            {"module": module, "name": name, "says": "id", "args": args, "attributes": {"__reduce__": "id"}}
        )
        with nothing_is_run():
            rebuilt = rebuild_exception(f"{module}.{name}", "Traceback …\nid", described)
        assert type(rebuilt) is TrialFailedError


@pytest.mark.parametrize(("module", "name"), NAMES, ids=str)
def test_no_name_of_a_warning_runs_anything(module: str, name: str) -> None:
    with nothing_is_run():
        warning = fit_warnings._warning(GivenWarning(f"{module}.{name}", "id", module, 1), 2)

    assert type(warning) is UserWarning


@pytest.mark.parametrize(
    "text",
    [
        "gASVHQAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAJpZJSFlFKULg==",  # a pickle of os.system("id")
        "cposix\nsystem\n(S'id'\ntR.",
        "__import__('os').system('id')",
        "!!python/object/apply:os.system [id]",
    ],
)
def test_no_text_in_the_place_of_an_exception_runs_anything(text: str) -> None:
    with nothing_is_run():
        rebuilt = rebuild_exception("ValueError", "Traceback …\nValueError: it", text)

    assert (type(rebuilt), rebuilt.args) == (ValueError, ("it",))


def test_a_warning_names_no_file_that_python_would_read_and_show() -> None:
    """Python shows the line of the file that a warning names, whatever that file is."""
    place = fit_warnings._place_in_the_script()

    assert place[0] == __file__
    with all_warnings() as caught:
        given = GivenWarning("UserWarning", "it", "/etc/shadow", 1)
        warnings.warn_explicit(fit_warnings._warning(given, 1), UserWarning, *place[:2], module=given.module)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "told",
    [
        '{"threads": {"LD_PRELOAD": "/tmp/evil.so", "OMP_NUM_THREADS": "1; rm", "MKL_NUM_THREADS": 4}}',
        '{"threads": ["OMP_NUM_THREADS"]}',
        '["threads"]',
        "no JSON",
        None,
    ],
)
def test_what_a_worker_says_of_its_threads_sets_no_other_variable(told: str | None) -> None:
    environment = _environment(told)
    trial = RecordedTrial({}, 0, 1, {}, None, None, None, environment, None, {})

    assert trial.thread_variables() == {}
    _differences(trial, {"threads": {}}, "", None)  # and is no error
