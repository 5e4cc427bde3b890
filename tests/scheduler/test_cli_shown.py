"""What the commands draw at a terminal, what programs get of them, and how a search is named."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from gridfleet.scheduler.cli.completion import candidates
from gridfleet.scheduler.cli.main import app
from gridfleet.scheduler.reports import followed, reader
from gridfleet.scheduler.reports.figures import ago, count, score, with_deviation
from gridfleet.storage import searches, workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Attempt, Search
from gridfleet.storage.settings import Settings
from tests.stored_searches import WORKERS, claim, record, store_search, switch_triggers_off
from tests.warm_scripts import COMMAND, warm_scripts

Gridfleet = Callable[..., tuple[int, str, str]]


def at_terminal(*arguments: str, columns: int = 80, kind: str = "dumb") -> list[str]:
    """Run the command at a terminal of its own, and return the lines that it draws."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    drawn: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(controller, 4096):
                drawn.append(chunk)
        except OSError:  # it has ended
            pass

    reading = threading.Thread(target=read)
    reading.start()
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")} | {
        "TERM": kind
    }
    done = warm_scripts().run(COMMAND, *arguments, terminal=terminal, env=environment)
    os.close(terminal)
    reading.join()
    os.close(controller)
    assert done.returncode == 0
    return b"".join(drawn).decode().replace("\r\n", "\n").splitlines()


def test_a_list_has_one_line_a_search_at_80_columns_and_shortens_names_only(
    fleet: Settings, database: Database, pima: int
) -> None:
    long = "a-name-that-is-as-long-as-names-may-be-and-differs-at-its-end-1"
    search_id = store_search(fleet, database, long, [{"C": n} for n in range(4)])
    for number in range(3):
        record(database, claim(database, search_id, number, WORKERS[0]), None if number else (-1.8512e-30, -1.2e-30))

    header, first, second = at_terminal("list")

    assert header.split() == ["search", "state", "scored", "failed", "best", "submitted"]
    assert all(len(line) <= 80 for line in (header, first, second))
    name, state, scored, failed, best = first.split()[:5]
    assert name.startswith("a-name-that")
    assert name.endswith("end-1")
    assert "…" in name
    assert (state, scored, failed, best) == ("running", "1/4", "2", "-1.526e-30")
    assert second.split()[:5] == ["pima", "completed", "4/5", "1", "0.7500"]
    assert second.rstrip().endswith(" s ago")


@pytest.mark.parametrize("command", ["list", "report", "best"])
def test_colour_only_repeats_what_words_say(command: str, fleet: Settings, pima: int) -> None:
    colourful, plain = (at_terminal(command, kind=kind) for kind in ("xterm-256color", "dumb"))

    words = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in colourful]
    assert any("\x1b[" in line for line in colourful) is (command != "best")
    without_times = [[re.sub(r"\d+ s ago", "", line).rstrip() for line in lines] for lines in (words, plain)]
    assert without_times[0] == without_times[1]


def test_a_log_is_followed_and_goes_on_when_it_is_begun_anew(embedded_home: Path) -> None:
    log = embedded_home / ".gridfleet" / "fleet.log"
    log.parent.mkdir(mode=0o700)
    log.touch(mode=0o600)
    log.write_text("first\nsecond\n")
    command = [sys.executable, "-P", "-m", "gridfleet", "logs", "-f", "-n", "1"]
    with subprocess.Popen(command, cwd=embedded_home, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        shown = [following.stdout.readline()]
        with log.open("a") as file:
            file.write("third, and longer than what comes after it\n")
        shown.append(following.stdout.readline())
        os.truncate(log, 0)
        log.write_text("anew\n")
        shown.append(following.stdout.readline())
        following.terminate()  # SIGINT is ignored where a shell runs the tests in the background

    assert shown == ["second\n", "third, and longer than what comes after it\n", "anew\n"]


def test_a_wide_list_and_one_for_programs_have_all(gridfleet: Gridfleet, pima: int) -> None:
    _, wide, _ = gridfleet("list", "--wide")
    assert "UTC" in wide
    assert "ada@host-a" in wide

    (listed,) = json.loads(gridfleet("list", "--json")[1])
    shown = {key: listed[key] for key in ("search", "search_id", "state", "total", "completed", "failed", "best_score")}
    assert shown == {
        "search": "pima",
        "search_id": pima,
        "state": "completed",
        "total": 5,
        "completed": 4,
        "failed": 1,
        "best_score": 0.75,
    }


def test_a_search_is_meant_by_its_name_its_id_its_beginning_or_as_the_latest(
    gridfleet: Gridfleet, fleet: Settings, database: Database, pima: int
) -> None:
    store_search(fleet, database, "pima wide", [{"C": 1}])
    latest = store_search(fleet, database, "iris", [{"C": 1}])

    def meant(*asked: str) -> str:
        status, shown, said = gridfleet("report", *asked)
        return shown.partition(":")[0] if status == 0 else said

    assert meant() == meant("@latest") == meant("IRIS") == meant("i") == meant(str(latest)) == "iris"
    assert meant("pima") == meant(str(pima)) == "pima"
    assert meant("pima ") == "pima wide"
    assert meant("pim") == "gridfleet: 2 searches begin with 'pim': 'pima wide', 'pima'; write more of the name\n"
    assert meant("iriss") == "gridfleet: no search has the name 'iriss'; did you mean 'iris'?\n"
    assert meant("%") == "gridfleet: no search has the name '%'; the newest are 'iris', 'pima wide', 'pima'\n"


def test_what_changes_a_search_needs_its_whole_name(gridfleet: Gridfleet, fleet: Settings, database: Database) -> None:
    search_id = store_search(fleet, database, "iris", [{"C": 1}])

    for command in ("cancel", "pause", "retry-failed", "tag", "delete"):
        assert gridfleet(command)[0] == 2
        assert gridfleet(command, "iri")[2] == "gridfleet: no search has the name 'iri'; did you mean 'iris'?\n"
    assert gridfleet("pause", "@latest")[0] == 0
    assert gridfleet("cancel", str(search_id))[:2] == (0, "search iris is cancelled\n")
    assert gridfleet("cancel", "iris")[0] == 0  # nothing to do is no error


def test_scores_are_shown_with_four_digits_and_their_deviation() -> None:
    shown = [score(value) for value in (None, 0.0, 0.75, 1.0, -3254.71, 32547.1, 1e-5, -1.8512e-30, 1e300)]
    assert shown == ["", "0.0000", "0.7500", "1.000", "-3255", "32547", "1.000e-05", "-1.851e-30", "1.000e+300"]
    assert with_deviation(0.75, 0.015625) == "0.7500 ± 0.0156"
    assert with_deviation(-1.8512e-30, 7.2e-31) == "-1.851e-30 ± 7.2e-31"
    assert with_deviation(0.75, 1e-9) == "0.7500 ± 1.0e-09"
    assert with_deviation(0.75, 0.0) == "0.7500 ± 0.0000"
    assert [count(1, "search"), count(2, "search"), count(1_000, "trial")] == ["1 search", "2 searches", "1,000 trials"]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-3, "0 s ago"), (16 * 60, "16 min ago"), (2 * 3600, "2 h ago"), (3 * 86400, "3 days ago")]
)
def test_how_long_ago_it_was_is_told_in_one_unit(seconds: float, shown: str) -> None:
    from datetime import UTC, datetime, timedelta

    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert ago(now - timedelta(seconds=seconds), now) == shown


def test_the_winner_is_built_again_by_a_line_of_python(gridfleet: Gridfleet, pima: int) -> None:
    line = gridfleet("best", "--python")[1]

    assert line in (
        "estimator.set_params(optimizer='adam', batch_size=20)\n",
        "estimator.set_params(batch_size=20, optimizer='adam')\n",
    )


def test_a_comparison_shows_what_came_of_two_searches_and_in_what_they_differ(
    gridfleet: Gridfleet, fleet: Settings, database: Database, pima: int
) -> None:
    search_id = store_search(fleet, database, "pima-2", [{"optimizer": "adam", "batch_size": 40}])
    record(database, claim(database, search_id, 0, WORKERS[0]), (0.5, 0.75))
    with database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Search).where(Search.id == search_id).values(fit_mode="xla"))

    _, shown, _ = gridfleet("compare", "pima", "pima-2")
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in shown.splitlines()[1:]]
    cells = {what: values for what, *values in rows}
    assert cells["trials"] == ["4/5 scored, 1 failed", "1/1 scored"]
    assert cells["fit_mode"] == ["exact", "xla"]
    lines = json.loads(gridfleet("compare", "pima", "pima-2", "--json")[1])["lines"]
    assert {line["what"]: line["values"] for line in lines if line["differs"]} == {
        "trials": ["4/5 scored, 1 failed", "1/1 scored"],
        "best score": ["0.7500 ± 0.0156", "0.6250 ± 0.1250"],
        "best batch_size": ["20", "40"],
        "fit_mode": ["exact", "xla"],
    }


def test_reports_for_programs_have_all_digits_under_the_names_of_sql(gridfleet: Gridfleet, pima: int) -> None:
    report = json.loads(gridfleet("report", "--json")[1])
    assert (report["state"], report["completed"], report["failed"]) == ("completed", 4, 1)
    assert [trial["mean_test_score"] for trial in report["leaderboard"]] == [0.75, 0.703125, 0.6875, 0.65625]
    assert report["failures"][0]["cause"] == "ValueError: Could not interpret optimizer identifier: adan"

    trial = json.loads(gridfleet("report", "--trial", "1", "--json")[1])
    assert [one["test_score"] for one in trial["split_scores"]] == [0.734375, 0.765625]
    attempts = [json.loads(line) for line in gridfleet("report", "--attempts", "--json")[1].splitlines()]
    assert [one["outcome"] for one in attempts].count("completed") == 4
    assert json.loads(gridfleet("report", "--source", "--json")[1])["modules"] == {}


def test_watch_for_programs_is_a_line_of_json_at_each_change(
    gridfleet: Gridfleet, fleet: Settings, database: Database, pima: int
) -> None:
    (line,) = gridfleet("watch", "pima", "--json")[1].splitlines()
    assert (json.loads(line)["state"], json.loads(line)["completed"]) == ("completed", 4)

    search_id = store_search(fleet, database, "new", [{"C": 1}])
    watcher = followed.JsonWatcher(database)
    assert [json.loads(line)["search"] for line in watcher.look()] == ["pima", "new"]
    assert watcher.look() == []
    record(database, claim(database, search_id, 0, WORKERS[0]), None)
    assert [json.loads(line)["state"] for line in watcher.look()] == ["failed"]


def test_a_paused_or_waiting_search_tells_no_time_left(fleet: Settings, database: Database) -> None:
    search_id = store_search(fleet, database, "new", [{"C": n} for n in range(9)])
    workers.register(database, WORKERS[0], hostname="host-a", pid=1)
    for number in range(3):
        record(database, claim(database, search_id, number, WORKERS[0]), (0.5, 0.5))
    claim(database, search_id, 3, WORKERS[0])

    assert reader.progress(database, search_id).seconds_left is not None
    workers.note_ended(database, None)
    assert reader.progress(database, search_id).seconds_left is None
    searches.pause_search(database, search_id)
    assert reader.progress(database, search_id).state == "paused"


def test_attempts_are_printed_as_they_are_read_however_many_there_are(
    fleet: Settings, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    import tracemalloc

    from gridfleet.scheduler.reports.attempts import print_attempts

    search_id = store_search(fleet, database, "new", [{"C": 1}])
    claimed = claim(database, search_id, 0, WORKERS[0])
    error = "Traceback\n" + "x" * 2_000 + "\nValueError: no"
    rows = [
        {"trial_id": claimed.trial_id, "attempt": number, "token": "t", "worker_id": "w", "error": error}
        for number in range(2, 4_002)
    ]
    with database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(insert(Attempt), rows)
    del rows

    with capsys.disabled(), open(os.devnull, "w") as nowhere:  # noqa: PTH123 - it is no file
        old, sys.stdout = sys.stdout, nowhere
        tracemalloc.start()
        try:
            print_attempts(database, search_id)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            sys.stdout = old
    assert peak < 8_000_000  # of 8 MB of errors, and as much as rows


@pytest.mark.parametrize("arguments", [("list",), ("report", "--attempts"), ("settings",)], ids=" ".join)
def test_who_reads_one_line_only_sees_no_error_behind_it(pima: int, arguments: Sequence[str]) -> None:
    command = " ".join([sys.executable, "-P", "-m", "gridfleet", *arguments])
    # whoever reads has gone before the first line is there
    done = subprocess.run(["sh", "-c", f"({command}; true) | true"], capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("", "")


def test_short_help_and_the_release_are_there_behind_every_command(gridfleet: Gridfleet) -> None:
    for command in ((), ("list",), ("db",), ("db", "size")):
        assert gridfleet(*command, "-h") == gridfleet(*command, "--help")
        assert gridfleet(*command, "--version")[:2] == (0, gridfleet("--version")[1])


def test_a_shell_completes_commands_options_values_and_names(fleet: Settings, database: Database, pima: int) -> None:
    store_search(fleet, database, "pima wide", [{"C": 1}])

    assert candidates(app, ["re"]) == ["report", "reproduce", "resume", "retry-failed", "rename", "rekey"]
    assert candidates(app, ["db", "re"]) == ["restore"]
    assert candidates(app, ["list", "--st"]) == ["--state"]
    assert candidates(app, ["list", "--state", "ti"]) == ["'timed out'"]
    assert candidates(app, ["report", "p"]) == ["'pima wide'", "pima"]
    assert candidates(app, ["report", "--trial", "1", "pima w"]) == ["'pima wide'"]
    assert candidates(app, ["delete", "pima", "pi"]) == ["'pima wide'", "pima"]
    assert candidates(app, ["report", "pima", "pi"]) == []


def test_bash_is_offered_what_the_command_knows(gridfleet: Gridfleet, pima: int, tmp_path: object) -> None:
    script = gridfleet("completion", "bash")[1]
    program = (
        f'gridfleet() {{ "{sys.executable}" -P -m gridfleet "$@"; }}\n{script}\n'
        'COMP_WORDS=(gridfleet report pi) COMP_CWORD=2\n_gridfleet\nprintf "%s|" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("pima|", "")
    for shell in ("zsh", "fish"):
        assert "gridfleet __complete" in gridfleet("completion", shell)[1]
    assert gridfleet("completion", "csh")[0] == 2


def test_a_service_that_does_not_end_at_sigterm_says_where_it_is_and_ends() -> None:
    program = """
import time
from gridfleet.scheduler.cli import connected
connected.STOP_S = 0.5
connected.exit_at_sigterm()
print("ready", flush=True)
while True:
    try:
        time.sleep(60)
    except SystemExit:
        pass
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        _, said = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "Timeout" in said
    assert 'File "<string>", line 9 in <module>' in said
