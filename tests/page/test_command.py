"""``gridfleet page``: what it prints, who may come in, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from gridfleet.storage.database.connection import Database
from gridfleet.storage.settings import Settings
from tests.faults.support import wait_for
from tests.scheduler.conftest import fleet, gridfleet
from tests.stored_searches import store_pima

__all__ = ["fleet", "gridfleet"]

#: The command, which says at its end whether it imported what it must not; Optuna's figures import scikit-learn.
PROGRAM = """
import atexit, sys
atexit.register(lambda: print("heavy:", {"tensorflow", "keras"} & set(sys.modules)))
from gridfleet.scheduler.cli.main import main
main()
"""
PASSWORD = "a password of 16 characters or more"

pytestmark = pytest.mark.parametrize("backend", ["sqlite"])


@pytest.fixture
def start_page(fleet: Settings, database: Database) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command; it is stopped at the end."""
    store_pima(fleet, database)
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, "page", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env={**os.environ, **variables}, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("at_first", [signal.SIG_DFL, signal.SIG_IGN], ids=["a terminal's", "a script's background"])
def test_it_prints_an_address_with_a_token_and_ends_at_ctrl_c(
    start_page: Callable[..., subprocess.Popen[str]], at_first: signal.Handlers
) -> None:
    before = signal.signal(signal.SIGINT, at_first)  # the command begins with what this process has
    try:
        process = start_page("--port", "0")
    finally:
        signal.signal(signal.SIGINT, before)

    address = process.stdout.readline().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", address)
    base, _, token = address.partition("?token=")
    with urlopen(Request(base, headers={"Authorization": f"Bearer {token}"})) as answer:
        assert "pima" in answer.read().decode()
    with urlopen(address) as answer:
        assert answer.headers["Set-Cookie"]
    with pytest.raises(HTTPError, match="401"):
        urlopen(base)
    process.send_signal(signal.SIGINT)
    shown, said = process.communicate(timeout=60)
    assert (process.returncode, shown) == (0, "heavy: set()\n")
    assert said == "gridfleet: the page is there; Ctrl-C stops it\ngridfleet: the page has stopped\n"


def test_as_a_service_it_has_a_password_a_log_and_a_sign_of_life(
    start_page: Callable[..., subprocess.Popen[str]], fleet: Settings
) -> None:
    process = start_page("--port", "0", "--watch", GRIDFLEET_PAGE_PASSWORD=PASSWORD)

    address = process.stdout.readline().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
    assert "best score: 0.75" in process.stdout.readline()
    with urlopen(Request(address, headers={"Authorization": f"Bearer {PASSWORD}"})) as answer:
        assert answer.status == 200
    assert fleet.health_path is not None
    assert fleet.health_path.exists()
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert PASSWORD not in said
    assert "Traceback" not in said


def test_what_can_not_be_served_is_said_in_a_sentence(
    gridfleet: Callable[..., tuple[int, str, str]], fleet: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIDFLEET_PAGE_PASSWORD", "short")
    assert "GRIDFLEET_PAGE_PASSWORD has 5 characters; it needs at least 16" in gridfleet("page")[2]
    monkeypatch.delenv("GRIDFLEET_PAGE_PASSWORD")
    monkeypatch.setenv("GRIDFLEET_PAGE_ADDRESS", "192.0.2.1")
    assert "the page can't listen at 192.0.2.1:80 (" in gridfleet("page", "--port", "80")[2]
    assert gridfleet("page", "--port", "65536")[0] == 2


def test_without_the_extra_it_says_what_to_install(fleet: Settings, database: Database) -> None:
    without = f"import sys\nsys.modules['starlette.applications'] = None\n{PROGRAM}"

    done = subprocess.run([sys.executable, "-c", without, "page"], capture_output=True, text=True)

    assert done.returncode == 1
    assert "the page needs starlette, which is not installed; run `pip install 'gridfleet[page]'`" in done.stderr


def test_the_browser_is_sent_there_by_a_file_that_nobody_else_reads(
    start_page: Callable[..., subprocess.Popen[str]], tmp_path: pytest.TempPathFactory
) -> None:
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(
        f'#!/bin/sh\nstat -c %a "$(dirname "${{1#file://}}")" >{seen}.part\n'
        f'cat "${{1#file://}}" >>{seen}.part\nmv {seen}.part {seen}\n'
    )
    browser.chmod(0o700)
    process = start_page("--port", "0", "--open", BROWSER=f"{browser} %s")
    address = process.stdout.readline().strip()

    wait_for(seen.exists, "the browser was not started")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    mode, shown = seen.read_text().split("\n", 1)
    assert (mode, f"url={address}" in shown) == ("700", True)
    assert address.partition("token=")[2] not in said
