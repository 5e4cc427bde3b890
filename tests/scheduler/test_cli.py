"""The command ``gridfleet``, on real databases, and on a real embedded fleet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text, update

from gridfleet.scheduler.fleet.connection import connect
from gridfleet.scheduler.fleet.local import client
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.watch import Watcher
from gridfleet.storage import migrations, searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import LocalFleetError
from gridfleet.storage.schema import SCHEMA_REVISION, Search
from gridfleet.storage.settings import load_settings
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.held import Held
from tests.helps import helps
from tests.stored_searches import WORKERS, claim, record, store_search, switch_triggers_off
from tests.warm_scripts import COMMAND, warm_scripts

#: pydantic is not among them: typer imports it by itself where it is installed.
HEAVY = (
    "sqlalchemy",
    "pydantic_settings",
    "sklearn",
    "celery",
    "numpy",
    "pandas",
    "keras",
    "tensorflow",
    "redis",
    "alembic",
)
COMMANDS = (
    "up",
    "worker",
    "scheduler",
    "health",
    "submit",
    "list",
    "watch",
    "page",
    "report",
    "best",
    "cancel",
    "pause",
    "resume",
    "priority",
    "retry-failed",
    "sql",
    "settings",
    "public-key",
    "doctor",
)
SEARCH_FILE = """
model: sklearn.tree:DecisionTreeClassifier
random_state: 0
data: {file: flowers.csv, target: kind}
space: {max_depth: [1, 2], criterion: [gini, entropy]}
cv: 2
"""
FLOWERS = "width,height,kind\n" + "".join(f"{n % 7},{n % 5},{n % 2}\n" for n in range(40))


@pytest.fixture
def search_file(tmp_path):
    """Write a search file of four trials and its data."""
    (tmp_path / "flowers.csv").write_text(FLOWERS)
    file = tmp_path / "trees.yaml"
    file.write_text(SEARCH_FILE)
    return file


def _program(*arguments: str, before: str = "", after: str = "") -> list[str]:
    return [
        sys.executable,
        "-c",
        f"{before}\nfrom gridfleet.scheduler.cli.main import main\n{after or 'main()'}",
        *arguments,
    ]


def test_help_imports_nothing_heavy():
    asked = [(), ("db",), ("db", "upgrade"), *((name,) for name in COMMANDS)]

    for command, printed in helps(asked, heavy=HEAVY).items():
        assert (printed.status, printed.imported) == (0, []), command
        assert "Usage: gridfleet" in printed.text


def test_health_imports_nothing_heavy_and_believes_a_young_file_only(tmp_path, monkeypatch, gridfleet):
    file = tmp_path / "health"
    monkeypatch.setenv("GRIDFLEET_HEALTH_FILE", str(file))

    assert gridfleet("health")[0] == 1
    file.touch()
    assert gridfleet("health") == (0, "", "")
    os.utime(file, (0, 0))
    status, _, said = gridfleet("health")

    assert status == 1
    assert "the service does not live" in said


def test_wrong_usage_has_status_2(gridfleet):
    assert gridfleet("cancel")[0] == 2
    assert gridfleet("nonsense")[0] == 2
    assert gridfleet("up", "--workers", "0")[0] == 2


def test_list_shows_state_progress_and_best_score(gridfleet, pima):
    status, shown, _ = gridfleet("list")

    assert status == 0
    assert shown.splitlines()[1].split()[:5] == ["pima", "completed", "4/5", "1", "0.7500"]


def test_report_tells_what_was_searched_the_best_the_leaderboard_and_the_failures(gridfleet, pima):
    status, shown, _ = gridfleet("report", "PIMA")

    assert status == 0
    assert "pima: completed" in shown
    assert "GridSearchCV, 5 trials of 2 splits, over " in shown
    assert "4/5 scored, 1 failed" in shown
    assert "best score   score 0.7500 ± 0.0156" in shown
    ranks = [line.split()[0] for line in shown.partition("mean_test_score")[2].splitlines()[1:5]]
    assert ranks == ["1", "2", "3", "4"]
    _, _, failed = shown.partition("failed: 1\n")
    assert failed.splitlines() == [
        "  1 × ValueError: Could not interpret optimizer identifier: adan",
        "      trial 4, e.g. optimizer=adan, batch_size=10; on host-a/101",
        "one with its traceback: gridfleet report pima --trial 4",
    ]


def test_report_groups_failures_by_their_cause(gridfleet, fleet, database):
    search_id = store_search(fleet, database, "all fail", [{"C": value} for value in (None, 2, 3, 4)])
    for number, scores in enumerate([None, None, (0.5, 0.5), None]):
        record(database, claim(database, search_id, number, WORKERS[0]), scores)

    _, shown, _ = gridfleet("report", "all fail")
    assert "over C" in shown
    assert shown.count("Could not interpret optimizer identifier") == 1
    assert "\n  3 × ValueError: " in shown
    assert "\n      trials 0-1, 3, e.g. C=None; on host-a/101\n" in shown
    assert shown.endswith("one with its traceback: gridfleet report 'all fail' --trial 0\n")


def test_a_report_of_one_trial_has_its_scores_by_split_its_attempts_and_its_whole_traceback(gridfleet, pima):
    _, failed, _ = gridfleet("report", "pima", "--trial", "4")
    assert failed.startswith("pima, trial 4: failed\n")
    assert "optimizer='adan'" in failed
    assert "Traceback (most recent call last):\n" in failed
    assert failed.endswith("ValueError: Could not interpret optimizer identifier: adan\n")

    _, scored, _ = gridfleet("report", "pima", "--trial", "1")
    header, *splits = scored.partition("split")[2].splitlines()
    assert header.split()[:2] == ["metric", "test_score"]
    assert [line.split()[:3] for line in splits[:2]] == [["0", "score", "0.7344"], ["1", "score", "0.7656"]]
    assert "worker_lost" in scored

    status, _, said = gridfleet("report", "pima", "--trial", "5")
    assert (status, said) == (1, "gridfleet: search pima has no trial 5; its trials are 0 to 4\n")
    assert gridfleet("report", "pima", "--trial", "-1")[0] == 2
    assert gridfleet("report", "pima", "--trial", "1", "--attempts")[0] == 2


def test_the_metric_of_the_best_score_is_what_scoring_named(gridfleet, fleet, database, pima):
    for scoring, shown in (
        ("'f1'", "f1"),
        ("make_scorer(f1_score)", "make_scorer(f1_score)"),
        (None, "score"),
        ("", "score"),  # what its own __repr__ says of a scorer: any text, and a long one is shortened
        ("'is it' + 'code'", "'is it' + 'code'"),
        ("'cut of…", "'cut of…"),
    ):
        with database.write() as connection:
            switch_triggers_off(connection)
            connection.execute(update(Search).values(scoring=scoring))
        assert json.loads(gridfleet("best", "pima", "--json")[1])["metric"] == shown


def test_best_as_a_line_and_as_json(gridfleet, pima):
    _, line, _ = gridfleet("best", "pima")
    _, shown, _ = gridfleet("best", "pima", "--json")

    assert line == "pima  score 0.7500 ± 0.0156  optimizer=adam, batch_size=20\n"
    assert json.loads(shown) == {
        "search": "pima",
        "state": "completed",
        "metric": "score",
        "best_score": 0.75,
        "std_test_score": 0.015625,
        "best_params": {"optimizer": "adam", "batch_size": 20},
        "number": 1,
    }


@pytest.mark.parametrize(
    ("encoding", "emoji", "korean"),
    # which has one of the two signs
    [
        ("cp949", "\\U0001f600", "한"),
        pytest.param("ascii", "\\U0001f600", "\\ud55c", marks=pytest.mark.complete),
        pytest.param("utf-8", "😀", "한", marks=pytest.mark.complete),
    ],
)
def test_what_a_terminal_has_no_sign_for_is_shown_escaped(fleet, database, encoding, emoji, korean):
    search_id = store_search(fleet, database, "signs", [{"C": "😀한"}])
    record(database, claim(database, search_id, 0, WORKERS[0]), (0.5, 0.75))

    done = subprocess.run(
        [sys.executable, "-m", "gridfleet", "report", "signs"],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert f"{emoji}{korean}" in done.stdout.decode(encoding)


def test_a_search_without_a_score_has_no_best(gridfleet, fleet, database):
    store_search(fleet, database, "new", [{"C": 1}, {"C": 2}])

    status, line, _ = gridfleet("best", "new")
    assert (status, line) == (1, "new  no score: 0/2 scored, 2 queued\n")
    status, _, said = gridfleet("best", "new", "--json")
    assert (status, said) == (1, "gridfleet: search 'new' has no score yet; it is waiting (no fleet)\n")


def test_an_unknown_search_is_one_sentence(gridfleet, pima):
    for command in ("best", "report", "cancel", "watch"):
        assert gridfleet(command, "prima") == (
            1,
            "",
            "gridfleet: no search has the name 'prima'; did you mean 'pima'?\n",
        )
        assert gridfleet(command, "9")[2] == "gridfleet: no search has the id 9; the newest are 'pima'\n"


def test_watch_of_a_finished_search_ends_with_its_best_line(gridfleet, pima):
    status, shown, progress = gridfleet("watch", "pima")

    assert status == 0
    assert progress == "pima: 4/5 scored, 1 failed, best score 0.7500 ± 0.0156\n"
    assert shown.startswith("pima  score 0.7500 ± 0.0156  ")


def test_a_watcher_tells_each_change_once_and_each_end_once(fleet, database, pima):
    watcher = Watcher(database)
    assert [line.partition(",")[0] for line in watcher.look()] == ["best score: 0.75"]
    assert watcher.look() == []

    search_id = store_search(fleet, database, "new", [{"C": 1}, {"C": 2}])
    assert watcher.look() == ["new: 0/2 scored"]  # the workers of pima were seen a moment ago
    record(database, claim(database, search_id, 0, WORKERS[0]), (0.5, 0.75))
    (line,) = watcher.look()
    assert line.startswith("new: 1/2 scored, best 0.6250")
    assert watcher.look() == []
    record(database, claim(database, search_id, 1, WORKERS[0]), (0.5, 0.5))
    assert watcher.look() == ["best score: 0.625, best params: {'C': 1} (search new)"]
    assert watcher.look() == []


def test_a_large_search_is_told_in_few_lines(fleet, database):
    search_id = store_search(fleet, database, "large", [{"C": number} for number in range(200)])
    watcher = Watcher(database)
    printed = watcher.look()
    for number in range(60):
        record(database, claim(database, search_id, number, WORKERS[0]), (0.5, 0.5))
        printed += watcher.look()

    assert [line.split()[1] for line in printed] == [
        "0/200",
        "1/200",
        "10/200",
        "20/200",
        "30/200",
        "40/200",
        "50/200",
        "60/200",
    ]


def test_a_new_watcher_tells_the_newest_ends_only(fleet, database):
    for number in range(8):
        search_id = store_search(fleet, database, f"s{number}", [{"C": 1}])
        record(database, claim(database, search_id, 0, WORKERS[0]), (0.5, 0.5))

    assert [line[-4:-1] for line in Watcher(database).look()] == [" s3", " s4", " s5", " s6", " s7"]


def test_markup_and_control_characters_of_the_database_are_shown_and_not_obeyed(gridfleet, fleet, database):
    search_id = store_search(fleet, database, "new", [{"[bold red]C": "\x1b]0;title\x07[/]"}])
    record(database, claim(database, search_id, 0, WORKERS[0]), (0.5, 0.5))
    with database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Search).values(submitted_by="[red]\x1b[31mada", estimator="[link=x]y"))

    for command in (["list"], ["report", "new"], ["best", "new"], ["sql", "SELECT params FROM trials"]):
        _, shown, _ = gridfleet(*command)
        assert "\x1b" not in shown
        assert "\x07" not in shown
    assert r"[red]\x1b[31mada" in gridfleet("list", "--wide")[1]
    assert "[bold red]C" in gridfleet("report", "new")[1]


def test_db_upgrade_makes_the_tables_and_says_so(gridfleet, make_settings, backend, monkeypatch):
    for name, value in make_settings(backend, migrated=False).as_variables().items():
        monkeypatch.setenv(name, value)

    assert "run `gridfleet db upgrade`" in gridfleet("list")[2]
    assert gridfleet("db", "current")[1] == f"the schema is empty; this release needs {SCHEMA_REVISION}\n"
    assert gridfleet("db", "upgrade")[:2] == (0, f"the schema is {SCHEMA_REVISION}\n")
    assert gridfleet("db", "upgrade")[1] == f"the schema is {SCHEMA_REVISION} already\n"
    assert gridfleet("list")[1] == "there are no searches yet\n"


def test_a_newer_schema_asks_for_a_newer_release(gridfleet, fleet, database, monkeypatch):
    monkeypatch.delenv("GRIDFLEET_SECRET_KEY")
    monkeypatch.setenv("GRIDFLEET_PUBLIC_KEY", fleet.for_workers().public_key)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    for command in ("list", "worker", "doctor"):
        _, shown, said = gridfleet(command)
        assert "the database's schema is 9999, which is newer than this release of gridfleet" in shown + said
        assert "install a newer gridfleet" in shown + said
        assert "gridfleet db upgrade" not in shown + said


def test_a_broken_sqlite_file_is_told_as_one(gridfleet, embedded_home):
    home = embedded_home / ".gridfleet"
    home.mkdir(mode=0o700)
    (home / "gridfleet.db").touch(mode=0o600)
    (home / "gridfleet.db").write_text("this is a text of some length, and no database\n" * 50)

    for command in (["list"], ["doctor"], ["db", "upgrade"], ["up"]):
        status, shown, said = gridfleet(*command)
        assert status == 1
        assert "gridfleet.db can't be used (file is not a database); check the file" in shown + said
        assert "start it" not in shown + said
    with pytest.raises(LocalFleetError, match=r"did not start: the database .* can't be used"):
        connect()


def test_submit_stores_a_search_once(gridfleet, fleet, database, search_file):
    assert gridfleet("submit", str(search_file))[:2] == (0, "search trees is queued: 4 trials\n")

    status, _, said = gridfleet("submit", str(search_file))
    assert status == 1
    assert said == (
        "gridfleet: name 'trees' is taken (waiting (no fleet), 0/4 scored, 4 queued); read that one with "
        "`gridfleet report trees`, go on with it with --resume, or give --name trees-2\n"
    )
    there = "search trees is there already: waiting (no fleet)\n"
    assert gridfleet("submit", str(search_file), "--exist-ok")[1] == there
    assert gridfleet("submit", str(search_file), "--name", "more")[1] == "search more is queued: 4 trials\n"
    assert [search.name for search in reader.list_searches(database)] == ["more", "trees"]


def test_submit_goes_on_with_a_search_and_takes_results_that_are_there(gridfleet, fleet, database, search_file):
    gridfleet("submit", str(search_file), "--resume")
    searches.cancel_search(database, 1)

    status, shown, said = gridfleet("submit", str(search_file), "--resume")

    assert (status, shown) == (0, "search trees is there already: waiting (no fleet)\n")
    assert said == "gridfleet: search 'trees' is there: 0 of 4 trials are done\n"
    assert gridfleet("submit", str(search_file), "--exist-ok", "--resume")[2].endswith("give one of them\n")
    search_file.write_text(SEARCH_FILE.replace("cv: 2", "cv: 3\nload_if_exists: true"))
    assert "differs in cv: 2 there, 3 here; choose another" in gridfleet("submit", str(search_file))[2]
    status, shown, said = gridfleet("submit", str(search_file), "--name", "more", "--reuse")
    assert (status, shown) == (0, "search more is queued: 4 trials\n")
    assert said.startswith("gridfleet: 0 of 4 trials take results that are there\n")
    search_file.write_text(SEARCH_FILE + "reuse: maybe\n")
    assert "`reuse`" in gridfleet("submit", str(search_file))[2]


@pytest.mark.parametrize("backend", ["sqlite"])
def test_submit_of_a_keras_model_prints_no_lines_of_tensorflow(fleet, tmp_path):
    example = Path(__file__).parents[2] / "examples" / "pima.yaml"

    done = subprocess.run(_program("submit", str(example)), capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("search pima is queued: 2 trials\n", "")


@pytest.mark.parametrize(
    ("was", "now", "sentence"),
    [
        ("max_depth", "max_dept", "did you mean 'max_depth'?"),
        ("cv: 2", "cv: 50", "n_splits=50"),
        ("flowers.csv", "flower.csv", "there is no file"),
        ("cv: 2", "name: searches", "is a name of gridfleet's own"),
    ],
)
def test_a_search_that_can_not_run_leaves_nothing_behind(gridfleet, fleet, database, search_file, was, now, sentence):
    search_file.write_text(SEARCH_FILE.replace(was, now))

    status, _, said = gridfleet("submit", str(search_file))

    assert status == 1
    assert sentence in said
    assert said.count("\n") == 1
    assert reader.list_searches(database) == []


def test_an_unreachable_database_is_one_sentence_without_its_password(gridfleet, no_variables, monkeypatch):
    monkeypatch.setenv("GRIDFLEET_DATABASE_URL", "postgresql://ada:hunter2hunter2@127.0.0.1:1/x")

    for command in (["list"], ["watch"], ["sql", "SELECT 1"], ["db", "upgrade"], ["report", "pima"]):
        status, shown, said = gridfleet(*command)
        assert (status, shown) == (1, "")
        assert "does not answer" in said
        assert "hunter2" not in said
        assert said.count("\n") == 1


def test_a_folder_without_a_fleet_says_how_to_start_one(gridfleet, embedded_home):
    for command in (["list"], ["watch"], ["best", "x"], ["report", "x"], ["sql", "SELECT 1"], ["cancel", "x"]):
        status, _, said = gridfleet(*command)
        assert status == 1
        assert "`gridfleet up` starts" in said
    for command in ("worker", "scheduler"):
        assert "`gridfleet up` starts an embedded fleet" in gridfleet(command)[2]
    assert gridfleet("doctor")[0] == 0
    assert not (embedded_home / ".gridfleet").exists()


def test_up_is_not_for_a_configured_fleet(gridfleet, fleet):
    assert "`gridfleet worker` and `gridfleet scheduler`" in gridfleet("up")[2]


def test_submit_and_wait_on_an_embedded_fleet(embedded_home, search_file, gridfleet):
    done = warm_scripts().run(COMMAND, "submit", search_file, "--wait")
    assert done.returncode == 0, done.stderr
    queued, best = done.stdout.splitlines()
    assert queued == "search trees is queued: 4 trials"
    assert best.startswith("trees  score 0.")
    assert gridfleet("best", "trees")[1].strip() == best

    assert "no fleet runs in this folder" in gridfleet("doctor")[1]
    later = gridfleet("submit", str(search_file), "--name", "later")
    assert "no fleet runs in this folder; `gridfleet up` starts one" in later[2]


def test_up_runs_what_was_queued_and_stops_at_ctrl_c(embedded_home, search_file, gridfleet):
    gridfleet("submit", str(search_file))
    from tests.conftest import stop_embedded_fleet

    stop_embedded_fleet(embedded_home / ".gridfleet")
    up = subprocess.Popen(_program("up", "--workers", "1"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        said = up.stderr.readline().decode()
        assert "a fleet of 1 worker process in" in said
        assert str(embedded_home) in said
        status, shown, _ = gridfleet("watch", "trees")
        assert status == 0
        assert shown.startswith("trees  score 0.")
        assert "a fleet runs in" in gridfleet("up")[2]
    finally:
        up.send_signal(2)
        _, rest = up.communicate(timeout=60)
    assert up.returncode == 0
    assert b"the fleet has stopped" in rest
    assert rest.count(b"gridfleet: page: gridfleet page\n") == 1
    assert b"semaphore" not in rest


def test_watch_does_not_touch_the_health_file_of_the_folder_s_workers(embedded_home):
    stored = client.stored(load_settings())
    with closing(Database(stored)) as database:
        migrations.upgrade(database)
        store_search(stored, database, "new", [{"C": 1}])
    Path(stored.home / "gridfleet.db").chmod(0o600)

    watch = subprocess.Popen(_program("watch"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert b"new" in watch.stdout.readline()
    finally:
        watch.terminate()
        watch.communicate(timeout=60)

    assert not stored.health_file.exists()


def test_the_scheduler_takes_back_what_was_lost_and_ends_at_sigterm(fleet, database, tmp_path):
    search_id = store_search(fleet, database, "new", [{"C": 1}])
    claimed = claim(database, search_id, 0, WORKERS[0])
    transitions.heartbeat(database, Held(claimed.trial_id, claimed.token), lease_s=-1)
    # a scheduler that begins gives everybody a whole lease
    short = {"reconcile_s": 0.05, "heartbeat_s": 0.2, "lease_s": 0.5}
    variables = fleet.replace(**short, health_file=tmp_path / "scheduler.health").as_variables()

    service = subprocess.Popen(_program("scheduler"), env={**os.environ, **variables}, stderr=subprocess.PIPE)
    try:
        line = next(line for line in service.stderr if b"taken_back=1" in line)
        assert b"reconciler" in line
        assert (tmp_path / "scheduler.health").exists()
    finally:
        service.terminate()
        service.communicate(timeout=60)
    assert service.returncode == 0
    assert reader.progress(database, search_id).queued == 1
