"""Ctrl-C while a search is waited for: what is said last is whether it goes on, and what to do next."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sklearn.svm import SVC

from gridfleet import GridSearchCV, submit
from gridfleet.scheduler.fleet.local import client
from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.scheduler.results.going_on import what_goes_on
from gridfleet.scheduler.results.handle import SearchHandle
from gridfleet.storage.errors import BestModelError, InvalidSearchError

X, Y = [[0.0], [1.0]] * 6, [0, 1] * 6
SCRIPT = """
    import signal; signal.signal(signal.SIGINT, signal.default_int_handler)
    from sklearn.svm import SVC
    from gridfleet import GridSearchCV

    GridSearchCV(SVC(), {"C": [1, 10]}, cv=2, refit=False, name="on fleet").fit([[0.0], [1.0]] * 6, [0, 1] * 6)
"""

SEARCH_FILE = {
    "model": "sklearn.svm:SVC",
    "data": {"file": "flowers.csv", "target": "kind"},
    "space": {"C": [1, 10]},
    "cv": 2,
}


def interrupted_at_terminal(folder: Path, code: str) -> tuple[int, str]:
    """Run a script in a pseudo-terminal, and press Ctrl-C once its search waits."""
    (folder / "script.py").write_text(textwrap.dedent(code))
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "script.py"], stdout=theirs, stderr=theirs, cwd=folder) as script:
        os.close(theirs)
        shown, is_pressed = b"", False
        with suppress(OSError):  # the other end is closed
            while part := os.read(ours, 65_536):
                shown += part
                if b"0/2" in shown and not is_pressed:
                    is_pressed = True
                    script.send_signal(signal.SIGINT)
        os.close(ours)
        status = script.wait(60)
    return status, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()).replace("\r\n", "\n")


def test_ctrl_c_beside_gridfleet_up_says_that_the_search_goes_on(
    embedded_home: Path, announce: Callable[..., None]
) -> None:
    status, shown = interrupted_at_terminal(embedded_home, SCRIPT)

    assert status == -signal.SIGINT  # as after any other Ctrl-C, which a shell shows as 130
    _, _, trace = shown.partition("Traceback (most recent call last):\n")
    assert trace.count("  File ") == 2  # the script's own line, and where we end it
    assert trace.endswith(
        "KeyboardInterrupt: stopped waiting; on fleet still runs here (0/2)\n"
        "  to follow it:  gridfleet watch 'on fleet'\n"
        "  to stop it:    gridfleet cancel 'on fleet'\n"
    )


@pytest.fixture
def waiting(announce: Callable[..., None]) -> SearchHandle:
    """Submit a search that nobody evaluates."""
    return submit(GridSearchCV(SVC(), {"C": [1, 10]}, cv=2, refit=False), X, Y, name="first")


FOLLOW = "\n  to follow it:  gridfleet watch first\n  to stop it:    gridfleet cancel first"
IN_PYTHON = (
    "\n  to follow it:  import gridfleet; gridfleet.open_search('first').wait(verbose=1)"
    "\n  to stop it:    import gridfleet; gridfleet.open_search('first').cancel()"
)
OF_ANOTHER = "until the script ends that started the fleet"
GO_ON = "\n  to go on in a script:  name='first', load_if_exists=True\n  to go on without one:  gridfleet up"


@pytest.mark.parametrize(
    ("state", "is_ours", "is_interactive", "said"),
    [
        ({}, False, False, f"first still runs here (0/2){FOLLOW}"),
        ({}, False, True, f"first still runs here (0/2){IN_PYTHON}"),
        (
            {"owner": 1},
            False,
            False,
            f"first still runs here (0/2), until the script ends that started the fleet{FOLLOW}",
        ),
        ({}, True, False, f"first stops with this process (0/2){GO_ON}"),
        ({}, True, True, f"first still runs here (0/2), until this Python ends{IN_PYTHON}"),
        ({"linger_s": 600}, True, False, f"first still runs here (0/2), for 600 s after the last script{FOLLOW}"),
        (None, False, False, f"first waits for a fleet (0/2){GO_ON}"),
    ],
)
def test_whose_fleet_it_is_decides_what_becomes_of_a_search(
    waiting: SearchHandle,
    announce: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    state: dict[str, Any] | None,
    is_ours: bool,
    is_interactive: bool,
    said: str,
) -> None:
    fleet = waiting._fleet
    if state is None:
        Folder(fleet.settings.home).withdraw()
    else:
        announce(**state)
        fleet.settings = fleet.settings.replace(linger_s=state.get("linger_s", 0))
    with monkeypatch.context() as patched:
        if is_ours:
            patched.setattr(client, "_supervisors", [SimpleNamespace(pid=os.getpid())])
        if is_interactive:
            patched.setattr(sys, "ps1", "In : ", raising=False)

        assert what_goes_on(fleet, waiting.id, waiting.name) == said


def test_a_paused_search_is_told_how_to_go_on_with(waiting: SearchHandle) -> None:
    waiting.pause()

    assert what_goes_on(waiting._fleet, waiting.id, "first") == (
        "first is paused (0/2)\n  to go on with it:  gridfleet resume first"
    )


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_in_wait_ends_with_the_same_words_and_without_frames(
    waiting: SearchHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SearchHandle, "_patient_progress", interrupt)

    with pytest.raises(KeyboardInterrupt) as left:
        waiting.wait()

    assert type(left.value) is KeyboardInterrupt
    assert str(left.value) == f"stopped waiting; first still runs here (0/2){FOLLOW}"
    assert left.value._render_traceback_() == str(left.value).splitlines()  # what a notebook shows
    assert [frame.name for frame in traceback.extract_tb(left.value.__traceback__)][1:] == ["called"]


@pytest.mark.parametrize(
    "run_search", [lambda search: search.fit(X, Y), lambda search: submit(search, X, Y)], ids=["fit", "submit"]
)
def test_ctrl_c_while_a_fleet_starts_says_that_nothing_is_stored(
    embedded_home: Path, monkeypatch: pytest.MonkeyPatch, run_search: Callable[[GridSearchCV], object]
) -> None:
    monkeypatch.setattr(client, "ensure_running", interrupt)

    with pytest.raises(KeyboardInterrupt, match=r"^stopped before anything was stored$") as left:
        run_search(GridSearchCV(SVC(), {"C": [1]}, cv=2))

    assert traceback.extract_tb(left.value.__traceback__)[-1].name == "called"


def test_ctrl_c_in_submit_wait_says_it_and_ends_with_130(
    embedded_home: Path,
    announce: Callable[..., None],
    gridfleet: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("flowers.csv").write_text("width,kind\n" + "0,a\n1,b\n" * 6)
    Path("first.yaml").write_text(json.dumps(SEARCH_FILE))
    monkeypatch.setattr(SearchHandle, "_patient_progress", interrupt)

    status, _, errors = gridfleet("submit", "first.yaml", "--wait")

    assert status == 130
    assert errors.endswith(f"gridfleet: stopped waiting; first still runs here (0/2){FOLLOW}\n")


def test_errors_of_ours_leave_without_our_frames(embedded_home: Path) -> None:
    with pytest.raises(InvalidSearchError) as refused:
        submit(GridSearchCV(SVC(), {"C": [1]}, cv=2), X, Y, load_if_exists="yes")

    assert [frame.name for frame in traceback.extract_tb(refused.value.__traceback__)][1:] == ["called"]


def test_a_notebook_shows_an_error_of_ours_and_its_cause_in_a_line_each() -> None:
    error = BestModelError("the refit of search 'first' failed")
    error.__cause__ = ValueError("no such optimizer")

    assert error._render_traceback_() == [
        "BestModelError: the refit of search 'first' failed",
        "for ValueError: no such optimizer",
    ]
