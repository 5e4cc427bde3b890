"""What commands say of a fleet's state: ``doctor``, ``settings`` and ``public-key``."""

from __future__ import annotations

import json
import os
import re
from contextlib import closing
from socket import gethostname

import pytest
import redis
from pydantic import SecretStr
from sqlalchemy import update

from gridfleet.scheduler.fleet.reconciler import Reconciler
from gridfleet.storage import passes
from gridfleet.storage.database.times import now
from gridfleet.storage.schema import ReconcilerPass, Worker
from gridfleet.worker.broker.publisher import Publisher
from tests.conftest import KEYS
from tests.stored_searches import WORKERS, store_search


def test_doctor_finds_a_fleet_in_order(gridfleet, database, pima):
    passes.note_pass(database)

    status, shown, _ = gridfleet("doctor")

    assert status == 0, shown
    assert "WRONG" not in shown
    subjects = [line.split()[1] for line in shown.splitlines()]
    assert subjects == ["settings", "broker", "database", "schema", "keys", "scheduler", "workers", "packages"]


def test_doctor_says_what_is_wrong_and_keeps_the_secrets(gridfleet, fleet, database, pima, monkeypatch):
    passes.note_pass(database)
    monkeypatch.setenv("GRIDFLEET_SECRET_KEY", "another-secret-key")
    monkeypatch.setenv("GRIDFLEET_BROKER_URL", "redis://:hunter2hunter2@127.0.0.1:1/0")
    with database.write() as connection:
        connection.execute(update(Worker).where(Worker.id == WORKERS[0]).values(scikit_learn_version="0.1"))

    status, shown, said = gridfleet("doctor")

    wrong = {line.split()[1] for line in shown.splitlines() if line.startswith("WRONG")}
    assert status == 1
    assert wrong == {"broker", "keys", "versions"}
    assert "workers have scikit-learn 0.1" in shown
    assert "another-secret-key" not in shown + said
    assert "hunter2" not in shown + said


def test_doctor_says_what_each_part_of_a_fleet_has_of_the_keys(gridfleet, fleet, database, pima, monkeypatch):
    passes.note_pass(database)
    public_key = fleet.for_workers().public_key

    def keys() -> str:
        status, shown, _ = gridfleet("doctor")
        assert status == 0, shown
        return next(line for line in shown.splitlines() if line.split()[1] == "keys")

    assert f"a secret key of 64 characters; workers check with GRIDFLEET_PUBLIC_KEY={public_key}; the fleet's" in keys()
    monkeypatch.delenv("GRIDFLEET_SECRET_KEY")
    assert "none, as a scheduler needs none; workers need GRIDFLEET_PUBLIC_KEY" in keys()
    monkeypatch.setenv("GRIDFLEET_PUBLIC_KEY", public_key)
    assert "a public key, as workers need it; who submits needs GRIDFLEET_SECRET_KEY; the fleet's" in keys()
    monkeypatch.setenv("GRIDFLEET_PUBLIC_KEY", fleet.replace(secret_key=SecretStr("0" * 64)).for_workers().public_key)
    assert "WRONG keys      the fleet's payloads were not signed with this process's key" in gridfleet("doctor")[1]


def test_the_public_key_is_printed_for_who_has_the_secret_one(gridfleet, fleet, monkeypatch):
    assert gridfleet("public-key") == (0, f"{fleet.for_workers().public_key}\n", "")

    monkeypatch.delenv("GRIDFLEET_SECRET_KEY")
    status, shown, said = gridfleet("public-key")
    assert (status, shown) == (1, "")
    assert "GRIDFLEET_SECRET_KEY is not set" in said


def test_doctor_says_that_trials_wait_for_workers(gridfleet, fleet, database):
    store_search(fleet, database, "new", [{"C": 1}])

    status, shown, _ = gridfleet("doctor")

    assert status == 1
    none = "WRONG workers   none was seen in the last 30 s, and 1 trial waits"
    assert f"{none}; `gridfleet worker` starts some" in shown


def test_doctor_says_when_a_scheduler_last_looked(gridfleet, fleet, database):
    def scheduler() -> str:
        return next(line for line in gridfleet("doctor")[1].splitlines() if line.split()[1] == "scheduler")

    assert scheduler() == "WRONG scheduler none has run yet; start one with `gridfleet scheduler`"
    with closing(Publisher(fleet, KEYS)) as publisher:
        Reconciler(fleet, database, publisher).once()
    here = f"process {os.getpid()} on {gethostname()}"
    assert re.fullmatch(rf"ok    scheduler last looked after the fleet \d+ s ago, {re.escape(here)}", scheduler())
    with database.write() as connection:
        connection.execute(update(ReconcilerPass).values(last_pass_at=now(-3600)))
    assert re.match(
        "WRONG scheduler last looked after the fleet 360. s ago, .*; start one with `gridfleet sch", scheduler()
    )


def test_doctor_names_the_variables_that_are_set(gridfleet, fleet, monkeypatch):
    monkeypatch.delenv("GRIDFLEET_BROKER_URL")

    status, shown, _ = gridfleet("doctor")

    assert status == 1
    assert shown.splitlines()[0] == "ok    settings  a configured fleet: GRIDFLEET_DATABASE_URL"
    assert "WRONG broker    GRIDFLEET_BROKER_URL is not set" in shown


@pytest.mark.parametrize("answer", ["WRONGTYPE", "NOPERM"])
def test_doctor_survives_a_broker_that_refuses(gridfleet, fleet, database, broker_url, monkeypatch, answer):
    with redis.Redis.from_url(broker_url) as client:
        if answer == "WRONGTYPE":
            client.set(KEYS.queue, "no list")
        else:
            client.acl_setuser("guest", enabled=True, passwords=["+guest"], commands=["+ping", "+client", "+select"])
            monkeypatch.setenv("GRIDFLEET_BROKER_URL", re.sub("//.*@", "//guest:guest@", broker_url))

    status, shown, _ = gridfleet("doctor")

    assert status == 1
    line = next(line for line in shown.splitlines() if line.split()[1] == "broker")
    assert line.startswith("WRONG")
    assert "the broker answers, and refuses what workers ask of it" in line
    assert "database" in shown  # the rest is looked at


def test_settings_are_shown_without_secrets(gridfleet, monkeypatch):
    monkeypatch.setenv("GRIDFLEET_SECRET_KEY", "another-secret-key")
    monkeypatch.setenv("GRIDFLEET_LEASE_S", "77")

    status, shown, _ = gridfleet("settings")
    as_json = json.loads(gridfleet("settings", "--json")[1])

    assert status == 0
    assert "another-secret-key" not in shown + str(as_json)
    lease = next(line for line in shown.splitlines() if line.startswith("GRIDFLEET_LEASE_S"))
    assert lease.split()[1:3] == ["77.0", "environment"]
    assert next(one["default"] for one in as_json if one["variable"] == "GRIDFLEET_LEASE_S") == "60"


@pytest.mark.filterwarnings("default:the variable")
def test_a_misspelled_variable_is_said_in_one_line(gridfleet, monkeypatch):
    monkeypatch.setenv("GRIDFLEET_HEARTBEATS", "3")

    _, _, said = gridfleet("settings")

    assert said == (
        "gridfleet: the variable GRIDFLEET_HEARTBEATS is no setting of gridfleet; did you mean GRIDFLEET_HEARTBEAT_S?\n"
    )


def test_doctor_of_a_wrong_setting(gridfleet, no_variables, monkeypatch):
    monkeypatch.setenv("GRIDFLEET_MAX_FAILURES", "many")

    status, shown, _ = gridfleet("doctor")

    assert status == 1
    assert shown.startswith("WRONG settings  GRIDFLEET_MAX_FAILURES='many' is not valid")
