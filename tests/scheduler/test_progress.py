"""What people see while they wait: one line that fits its terminal, few lines in a log."""

from __future__ import annotations

import io
import os
import pty
import re
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from fcntl import ioctl

import pytest

from gridfleet import open_search
from gridfleet.scheduler.reports import progress as showing
from gridfleet.scheduler.reports.progress import GAP, Line, describe, display, shortened
from gridfleet.scheduler.reports.reader import Progress
from gridfleet.storage.database.connection import Database
from gridfleet.storage.search_states import ShownState
from gridfleet.storage.settings import Settings
from tests.stored_searches import store_pima

HALF = Progress(
    total=60,
    queued=25,
    running=2,
    completed=32,
    failed=1,
    pruned=0,
    cancelled=0,
    seconds_running=40.0,
    best_score=0.79987,
    is_finished=False,
)
NAME = "long-name-of-a-search-of-the-cards-2026"


COUNTS = ["33/60", "2 running", "1 failed"]


@pytest.mark.parametrize(
    ("width", "drawn"),
    [
        (150, f"{NAME}  BAR  33/60  2 running  1 failed  best 0.7999  ~10 s left  0:00:40"),
        (105, f"{NAME}  33/60  2 running  1 failed  best 0.7999  ~10 s left  0:00:40"),
        (95, f"{NAME}  33/60  2 running  1 failed  best 0.7999  ~10 s left"),
        (76, "long-name-o…-cards-2026  33/60  2 running  1 failed  best 0.7999  ~10 s left"),
        (60, "long-name…ards-2026  33/60  2 running  1 failed  best 0.7999"),
        (40, "long-n…-2026  33/60  2 running  1 failed"),
        (30, "33/60  2 running  1 failed"),
        (10, "33/60  2 running  1 failed"),
    ],
)
def test_a_line_fits_its_terminal_and_keeps_its_counts(width: int, drawn: str) -> None:
    line = Line.fitting(width, NAME, COUNTS, ["best 0.7999", "~10 s left"], "0:00:40")

    parts = [line.name, "BAR" if line.bar_width else "", line.facts, line.elapsed]
    assert GAP.join(filter(None, parts)) == drawn
    assert len(drawn) + max(line.bar_width - 3, 0) <= max(width, len("33/60  2 running  1 failed"))


def test_a_name_is_shortened_in_its_middle() -> None:
    assert shortened("long-name-of-a-search-of-cards-2026", 20) == "long-name-…ards-2026"
    assert shortened("short", 20) == "short"


def test_a_state_that_counts_do_not_say_is_named() -> None:
    assert describe(replace(HALF, state=ShownState.PAUSED)) == "32/60 scored, paused, 2 running, 1 failed, best 0.7999"

    waiting = replace(HALF, running=0, state=ShownState.WAITING)
    assert describe(waiting) == "32/60 scored, waiting (no fleet), 1 failed, best 0.7999"


def test_the_last_line_says_what_came_of_it_with_metric_and_deviation() -> None:
    ended = replace(HALF, running=0, queued=0, is_finished=True, metric="f1", std_test_score=0.0123)

    assert describe(replace(ended, completed=59)) == "59/60 scored, 1 failed, best f1 0.7999 ± 0.0123"
    timed_out = replace(ended, cancelled=27, state=ShownState.TIMED_OUT)
    assert describe(timed_out) == "32/60 scored, timed out, 1 failed, 27 cancelled, best f1 0.7999 ± 0.0123"


def test_a_log_gets_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(n) for n in range(100_000))
    monkeypatch.setattr(showing.time, "monotonic", lambda: next(clock))
    log = io.StringIO()

    with display("large", verbose=1, stream=log) as shown:
        for done in range(1_000):
            failed, state = int(done > 100), ShownState.RUNNING if done else ShownState.QUEUED
            shown.show(
                replace(HALF, state=state, total=1_000, completed=done - failed, queued=998 - done, failed=failed)
            )
        for _ in range(2):
            shown.show(replace(HALF, total=1_000, completed=999, queued=0, running=0, failed=1, is_finished=True))

    lines = log.getvalue().splitlines()
    assert len(lines) == 20
    assert lines[0].startswith("large: 0/1,000 scored, 2 running")
    assert re.fullmatch(r"large: 944/1,000 scored, 2 running, 1 failed, best 0\.7999, ~55 s left", lines[-2])
    assert lines[-1] == "large: 999/1,000 scored, 1 failed, best score 0.7999"


@contextmanager
def terminal(width: int) -> Iterator[tuple[io.TextIOWrapper, Callable[[], str]]]:
    """Open a pseudo-terminal of a width: what is written to, and what closes it and returns what it got."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    stream = os.fdopen(theirs, "w")

    def closed() -> str:
        stream.close()
        got = b""
        with suppress(OSError):  # the other end is closed
            while part := os.read(ours, 65_536):
                got += part
        return got.decode()

    try:
        yield stream, closed
    finally:
        os.close(ours)


@pytest.mark.parametrize("width", [30, 80, 200])
def test_a_terminal_shows_one_line(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))  # rich asks the standard streams, which are not terminals here
    with terminal(width) as (stream, closed):
        with display(NAME, verbose=1, stream=stream) as shown:
            shown.show(HALF)
        shown_text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", closed())

    (line,) = {text for text in re.split(r"[\r\n]+", shown_text) if "32/60" in text}
    assert len(line) <= width
    assert GAP.join(["32/60", *COUNTS[1:]]) in line
    assert ("best 0.7999" in line) == (width > 30)
    assert ("━" in line) == (width == 200)


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with terminal(80) as (stream, closed):
        with display("pima", verbose=1, stream=stream) as shown:
            shown.show(HALF)
        assert closed() == "pima: 32/60 scored, 2 running, 1 failed, best 0.7999\r\n"


@pytest.mark.parametrize(
    ("how", "shown"), [("plain", "pima: 32/60 scored, 2 running, 1 failed, best 0.7999\r\n"), ("quiet", "")]
)
def test_who_waits_may_choose_lines_or_nothing(how: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with terminal(80) as (stream, closed):
        with display("pima", verbose=1, how=how, stream=stream) as showing_it:
            showing_it.show(HALF)
        assert closed() == shown


@pytest.mark.parametrize("command", [["watch", "pima"], ["report", "pima", "--wait"]])
def test_a_command_that_waits_shows_progress_as_it_is_told(
    gridfleet: Callable[..., tuple[int, str, str]], pima: int, command: list[str]
) -> None:
    assert "pima: 4/5 scored, 1 failed, best score 0.7500" in gridfleet(*command, "--progress", "plain")[2]
    assert gridfleet(*command, "--progress", "quiet")[2] == ""


def test_a_setting_keeps_a_script_quiet(
    fleet: Settings, database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRIDFLEET_PROGRESS", "quiet")
    store_pima(fleet, database)

    open_search("pima").wait(verbose=1)

    assert capsys.readouterr().err == ""
