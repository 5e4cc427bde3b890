"""Lines of logs: what they say, as text and as JSON, and how often."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from gridfleet.storage import logs
from gridfleet.storage.logs import HOLD_S, HeldLines, log_to_stderr, working_on

EVIL = "x\x1b[2J\r2026-01-01T00:00:00.000Z ERROR other: planted"


@pytest.fixture(autouse=True)
def _root_as_before() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("gridfleet")
    before = root.level, root.handlers[:], own.level
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    own.setLevel(before[2])


def logged(style: str, level: str = "INFO", **who: str) -> tuple[logging.Logger, io.StringIO]:
    """Let this process log into a text, as a service does."""
    handler = log_to_stderr(level, style, **({"service": "worker"} | who))
    shown = io.StringIO()
    handler.setStream(shown)
    return logging.getLogger("gridfleet.tests"), shown


def test_a_line_says_when_how_bad_who_and_what_it_works_on() -> None:
    logger, shown = logged("text", worker="node/1")

    logger.info("the first")
    with working_on(search="pima", trial=12, attempt=2):
        logger.warning("the %s", "second")
    logger.debug("not shown")

    first, second = shown.getvalue().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO node/1: the first", first)
    assert second.endswith("Z WARNING node/1 search pima trial 12 attempt 2: the second")


def test_json_has_the_same_as_fields() -> None:
    logger, shown = logged("json", service="scheduler")

    with working_on(search="pi\nma", trial=12, attempt=2):
        logger.warning("two\nlines\x1b")
    try:
        raise ValueError("wrong")
    except ValueError:
        logger.exception("raised")

    first, second = map(json.loads, shown.getvalue().splitlines())
    assert {name: first[name] for name in first if name != "time"} == {
        "level": "WARNING",
        "service": "scheduler",
        "search": "pi\nma",
        "trial": 12,
        "attempt": 2,
        "logger": "gridfleet.tests",
        "message": "two\nlines\x1b",
    }
    assert second["message"].startswith("raised\nTraceback")
    assert "search" not in second


def test_what_a_line_quotes_is_text_and_no_line_of_its_own() -> None:
    logger, shown = logged("text")

    with working_on(search=EVIL, trial=1):
        logger.warning("%s\n%s", EVIL, EVIL)

    assert all(char.isprintable() or char == "\n" for char in shown.getvalue())
    first, second = shown.getvalue().splitlines()
    assert first.count("\\x1b[2J\\r2026") == 2
    assert second.startswith("    x\\x1b")


@pytest.mark.parametrize(("level", "others"), [("DEBUG", "INFO"), ("INFO", "WARNING"), ("ERROR", "ERROR")])
def test_other_libraries_say_less(level: str, others: str) -> None:
    logged("text", level)

    assert logging.getLogger("gridfleet.worker").isEnabledFor(logging.getLevelName(level))
    other = logging.getLogger("celery")
    assert other.getEffectiveLevel() == logging.getLevelName(others)


def test_an_equal_line_is_written_once_and_then_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    logger, shown = logged("text")
    now_s = 1000.0
    monkeypatch.setattr(logs.time, "monotonic", lambda: now_s)
    for second in range(2 * HOLD_S):
        now_s = 1000.0 + second
        logger.warning("heartbeat failed: %s", "OperationalError")
        if second % 3 == 0:
            logger.warning("reconciler: failed")
    now_s += HOLD_S
    logger.info("all is well")

    lines = [line.partition(": ")[2] for line in shown.getvalue().splitlines()]
    assert lines == [
        "heartbeat failed: OperationalError",
        "reconciler: failed",
        "reconciler: failed (19 times in 57 s)",
        "heartbeat failed: OperationalError (60 times in 60 s)",
        "reconciler: failed",
        "reconciler: failed (19 times in 57 s)",
        "heartbeat failed: OperationalError (59 times in 59 s)",
        "all is well",
    ]


def test_what_is_held_back_is_written_at_the_end() -> None:
    logger, shown = logged("text")
    for _ in range(3):
        logger.warning("again")

    logging.getLogger().handlers[0].close()

    assert [line.partition(": ")[2] for line in shown.getvalue().splitlines()] == [
        "again",
        "again (2 times in 0 s)",
    ]


def test_equal_lines_of_other_trials_and_what_models_print_are_all_written() -> None:
    logger, shown = logged("text")
    for trial in (1, 2):
        with working_on(trial=trial):
            logger.warning("stopped")
            for _ in range(2):
                logging.getLogger(logs.PRINTED).warning("epoch")

    assert shown.getvalue().count("stopped") == 2
    assert shown.getvalue().count("epoch") == 4


def test_only_so_many_lines_are_remembered() -> None:
    held = HeldLines()
    for number in range(logs.MAX_HELD + 50):
        assert len(held.note(logging.makeLogRecord({"msg": f"line {number}"}), 0.0)) == 1

    assert len(held._lines) == logs.MAX_HELD
