"""A fleet with the roles and rights of deploy/ does its work, and no secret of it shows anywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from gridfleet import OptunaSearchCV, submit
from gridfleet.scheduler.fleet import connection as fleets
from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.storage.errors import GridfleetError
from gridfleet.storage.passes import last_pass
from gridfleet.storage.settings import PREFIX, Settings
from tests.faults.support import Touching, X, Y, search, wait_for
from tests.security.conftest import DeployedFleet, GuardedBroker, RoledDatabase

#: Nobody listens there.
NOWHERE = "127.0.0.1:1"


@contextmanager
def started(file: Path, settings: Settings, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python with the settings as its variables; all that it says goes into a file."""
    with file.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env={name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
            | settings.as_variables(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def command_lines(processes: Iterable[psutil.Process]) -> str:
    """Return what `ps` shows of processes and their children."""
    shown = []
    for process in processes:
        for one in (process, *process.children(recursive=True)):
            try:
                shown.append(" ".join(one.cmdline()))
            except psutil.NoSuchProcess:
                continue
    return "\n".join(shown)


def evaluates(process: psutil.Process) -> bool:
    """Whether a process is of a worker, and so in reach of its trials."""
    if process.status() == psutil.STATUS_ZOMBIE:  # it has no environment any more
        return False
    return any(word in " ".join([process.name(), *process.cmdline()]) for word in ("gridfleet.worker", "gridfleet-t"))


def assert_none_shows(secrets: Iterable[str], shown: dict[str, str]) -> None:
    """Assert that no secret is in any text, however its signs are escaped there."""
    for secret in secrets:
        unescaped = max(re.findall(r"[\w-]+", secret), key=len)
        for where, text in shown.items():
            assert unescaped not in text, f"{secret[:8]}… shows in {where}"


@pytest.mark.postgresql
def test_a_fleet_with_the_rights_of_deploy_does_its_work_and_shows_no_secret(
    deployed: DeployedFleet,
    roled_database: RoledDatabase,
    guarded_broker: GuardedBroker,
    become: Callable[[Settings], None],
    gridfleet: Callable[..., tuple[int, str, str]],
    start_worker: Callable[..., Any],
    tmp_path: Path,
) -> None:
    said: dict[str, str] = {}

    def ask(who: Settings, *command: str) -> int:
        become(who)
        status, shown, errors = gridfleet(*command)
        said[f"{command} as {who.database().username} ({len(said)})"] = shown + errors
        return status

    worker = start_worker(deployed.worker)
    keyless = deployed.scheduler.replace(public_key=None)
    with started(tmp_path / "scheduler.log", keyless, "-m", "gridfleet", "scheduler") as scheduler:
        become(deployed.owner)
        handle = submit(search(tmp_path, [1, 2, 3]), X, Y, name="deployed").wait(90)
        assert handle.best_score_ == 3
        learning = OptunaSearchCV(Touching(str(tmp_path)), {"value": [4, 5]}, cv=2, refit=False)
        assert submit(learning, X, Y, name="learned").wait(90).best_score_ == 5
        said["handle"] = f"{handle!r}{handle._repr_html_()}{handle._fleet.settings!r}{handle._fleet.database.url!r}"

        wait_for(lambda: last_pass(handle._fleet.database), "the scheduler has looked after the fleet")
        assert ask(deployed.owner, "doctor") == 0, said
        assert ask(deployed.worker, "doctor") == 0, said
        assert ask(deployed.reporter, "best", "deployed") == 0
        assert ask(deployed.reporter, "sql", "SELECT * FROM deployed", "--csv") == 0
        wrong = {
            "broker_url": f"redis://gridfleet@{NOWHERE}/0",
            "broker_password": type(deployed.owner.broker_password)("pl4nted, but not the broker's"),
            "database_url": f"postgresql+psycopg://gridfleet@{NOWHERE}/{roled_database.name}",
            "secret_key": type(deployed.owner.secret_key)("pl4nted, but not the fleet's"),
        }
        for name, value in wrong.items():
            broken = deployed.owner.replace(**{name: value})
            assert ask(broken, "doctor") == 1
            # what a script shows that does not catch it
            become(broken)
            with pytest.raises(GridfleetError) as refused:
                fleets.connect()
            said[f"traceback of a wrong {name}"] = "".join(traceback.format_exception(refused.value))
        lonely = deployed.worker.replace(broker_url=wrong["broker_url"])
        with started(tmp_path / "lost.log", lonely, "-P", "-m", "gridfleet.worker", "1") as lost:
            assert lost.wait(90) == 1

        processes = [psutil.Process(pid) for pid in (worker.pid, scheduler.pid, guarded_broker.process.pid)]
        said["ps"] = command_lines(processes)
        assert said["ps"].count("python") >= 3
        guarded_broker.stop()
        wait_for(lambda: "onnection" in worker.log.read_text(), "the worker tells that its broker is gone")
    worker.kill()

    planted = [
        guarded_broker.password,
        roled_database.secret_key,
        *roled_database.passwords.values(),
        *(wrong[name].get_secret_value() for name in ("broker_password", "secret_key")),
    ]
    written = {
        str(file.relative_to(tmp_path)): file.read_bytes().decode("utf-8", "replace")
        for file in tmp_path.rglob("*")
        if file.is_file() and file.name != "gridfleet_broker_password" and "sources" not in file.parts
    }
    assert {"scheduler.log", "lost.log", worker.log.name, "broker/broker.log"} <= set(written)
    assert "does not answer" in written["lost.log"]
    assert_none_shows(planted, {**said, **written})


def test_an_embedded_fleet_shows_no_secret(embedded_home: Path) -> None:
    search(embedded_home, [1, 2], n_jobs=1, verbose=0).fit(X, Y)

    home = embedded_home / ".gridfleet"
    (fleet,) = [fleet for key, fleet in fleets._connected.items() if key[1] == str(home)]
    assert fleet.settings.broker().startswith("redis+socket:///")  # with no password that could be shown
    key = fleet.settings.key().decode()
    shown = {
        "ps": command_lines([psutil.Process()]),
        "repr": repr(fleet.settings),
        **{str(file): file.read_text(errors="replace") for file in home.rglob("*.log")},
    }

    # not this process's own children: workers of other tests may still be ending
    supervisor = psutil.Process(Folder(home).running()["pid"])
    workers = {process.pid: process for process in supervisor.children(recursive=True) if evaluates(process)}
    assert len(workers) >= 2  # with the main process
    shown |= {f"environment of {pid}": str(process.environ()) for pid, process in workers.items()}
    public_key = fleet.settings.for_workers().public_key
    assert [text.count(public_key) for name, text in shown.items() if name.startswith("env")] == [1] * len(workers)
    assert "valkey" in shown["ps"]
    assert_none_shows([key], shown)


@pytest.mark.parametrize(
    "url",
    [
        "{scheme}://ada:pl4nted-secret@127.0.0.1:1/0",
        "{scheme}://127.0.0.1:1/0?password=pl4nted-secret",
        "{scheme}://ada:x@127.0.0.1:pl4nted-secret/0",  # a password with a colon that was not escaped
        "{scheme}//ada:pl4nted-secret@127.0.0.1",
    ],
)
def test_a_password_in_a_url_is_not_shown_however_wrong_the_url_is(
    gridfleet: Callable[..., tuple[int, str, str]],
    no_variables: None,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
) -> None:
    monkeypatch.setenv("GRIDFLEET_DATABASE_URL", url.format(scheme="postgresql"))
    monkeypatch.setenv("GRIDFLEET_BROKER_URL", url.format(scheme="redis"))
    monkeypatch.setenv("GRIDFLEET_SECRET_KEY", "long enough for a key")
    shown = [repr(fleets.load_settings())]

    for command in (["doctor"], ["list"], ["db", "upgrade"]):
        status, output, errors = gridfleet(*command)
        assert status == 1
        shown += [output, errors]
    with pytest.raises(GridfleetError) as refused:
        fleets.connect()
    shown.append("".join(traceback.format_exception(refused.value)))

    assert not [text for text in shown if "pl4nted" in text]
